"""Validates the files of deploy/ against the schemas of those who will read them.

Usage: schemas.py REPOSITORY HELM COMPOSE_SCHEMA CRATES...

Kubernetes: the schemas in the package kubernetes-validate, strictly (a field that is not known is an error).
Compose: the specification's JSON schema. Custom resources: the types that kopium has made of the operators' definitions
(crates kcr_*): names of fields, required ones, kinds of scalars, values of enumerations.
Each check is first shown a file that is wrong: it must refuse it.
"""
import copy, json, pathlib, re, subprocess, sys

import jsonschema, kubernetes_validate, yaml

VERSIONS = ["1.28", "1.34"]
repository, helm, compose_schema = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
failures, checked = [], {}


def note(kind, name, error=None):
    checked[kind] = checked.get(kind, 0) + 1
    if error:
        failures.append(f"{name}: {error}")


class Definitions:
    """Structs and enums of a generated crate."""

    FIELD = re.compile(r"^    pub (?:r#)?(\w+): (.+),$")

    def __init__(self, crate):
        self.structs, self.enums, self.kinds = {}, {}, {}
        for path in sorted(pathlib.Path(crate, "src").rglob("*.rs")):
            self.read(path.read_text())

    def read(self, text):
        attributes, inside, body = "", None, None
        for line in text.splitlines():
            stripped = line.strip()
            if stripped.startswith("///"):
                continue
            if stripped.startswith("#["):
                attributes += stripped
            elif line.startswith("pub struct ") and line.endswith("{"):
                inside = line.split()[2]
                body = self.structs.setdefault(inside, {})
                kind = re.search(r'group = "([^"]+)", version = "([^"]+)", kind = "([^"]+)"', attributes)
                if kind:
                    self.kinds[(f"{kind[1]}/{kind[2]}", kind[3])] = inside
                attributes = ""
            elif line.startswith("pub enum ") and line.endswith("{"):
                inside = line.split()[2]
                body = self.enums.setdefault(inside, [])
                attributes = ""
            elif line == "}":
                inside, attributes = None, ""
            elif inside in self.structs and (field := self.FIELD.match(line)):
                renamed = re.search(r'rename = "([^"]+)"', attributes)
                body[renamed[1] if renamed else field[1]] = field[2]
                attributes = ""
            elif inside in self.enums and stripped:
                renamed = re.search(r'rename = "([^"]*)"', attributes)
                body.append(renamed[1] if renamed else stripped.strip(","))
                attributes = ""

    def check(self, document):
        kind = (document["apiVersion"], document["kind"])
        if kind not in self.kinds:
            return None
        errors = []
        self.struct(self.kinds[kind], document.get("spec"), "spec", errors)
        return errors

    def struct(self, name, value, place, errors):
        if not isinstance(value, dict):
            return errors.append(f"{place}: an object is wanted, not {value!r}")
        fields = self.structs[name]
        for key in value.keys() - fields.keys():
            errors.append(f"{place}.{key}: there is no such field")
        for key, kind in fields.items():
            if key in value:
                self.value(kind, value[key], f"{place}.{key}", errors)
            elif not kind.startswith("Option<"):
                errors.append(f"{place}.{key}: is required")

    def value(self, kind, value, place, errors):
        inner = re.fullmatch(r"(Option|Vec|Box)<(.+)>", kind)
        table = re.fullmatch(r"BTreeMap<String, (.+)>", kind)
        wanted = None
        if inner and inner[1] in ("Option", "Box"):
            self.value(inner[2], value, place, errors)
        elif inner:
            if not isinstance(value, list):
                wanted = "a list"
            else:
                for n, item in enumerate(value):
                    self.value(inner[2], item, f"{place}[{n}]", errors)
        elif table:
            if not isinstance(value, dict):
                wanted = "an object"
            else:
                for key, item in value.items():
                    self.value(table[1], item, f"{place}.{key}", errors)
        elif kind == "String":
            wanted = None if isinstance(value, str) else "a text"
        elif kind == "bool":
            wanted = None if isinstance(value, bool) else "true or false"
        elif kind in ("i32", "i64", "u32", "u64"):
            wanted = None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
        elif kind == "f64":
            wanted = None if isinstance(value, (int, float)) else "a number"
        elif kind == "IntOrString":
            wanted = None if isinstance(value, (int, str)) else "a number or a text"
        elif kind in ("serde_json::Value", "Condition"):
            pass
        elif kind in self.enums:
            wanted = None if value in self.enums[kind] else f"one of {self.enums[kind]}"
        elif kind in self.structs:
            self.struct(kind, value, place, errors)
        else:
            errors.append(f"{place}: the type {kind} is not known here")
        if wanted:
            errors.append(f"{place}: {wanted} is wanted, not {value!r}")


definitions = [Definitions(crate) for crate in sys.argv[4:]]


def custom(document):
    """Errors of a custom resource; None: nobody defines it."""
    found = [errors for d in definitions if (errors := d.check(document)) is not None]
    return found[0] if found else None


def kubernetes(document, name):
    errors = custom(document)
    if errors is not None:
        return note("custom resources", name, "; ".join(errors))
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
            note(f"objects of Kubernetes {version}", name)
        except Exception as error:
            note(f"objects of Kubernetes {version}", name, str(error).splitlines()[0])


def must_fail(what, check):
    before = len(failures)
    check()
    if len(failures) == before:
        sys.exit(f"the check of {what} accepts what is wrong")
    del failures[before:]


def documents(text):
    return [d for d in yaml.safe_load_all(text) if d]


# Compose.
schema = json.loads(pathlib.Path(compose_schema).read_text())
compose = yaml.safe_load((repository / "docker-compose.yml").read_text())
validator = jsonschema.Draft7Validator(schema)


def check_compose(document):
    errors = [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(document)]
    note("Compose files", "docker-compose.yml", "; ".join(errors))


wrong = copy.deepcopy(compose)
wrong["services"]["pgtrickle"]["depend_on"] = ["postgres"]
must_fail("Compose", lambda: check_compose(wrong))
check_compose(compose)

# Plain manifests.
folders = ["kubernetes", "cloudnative-pg", "crunchy-pgo"]
plain = []
for folder in folders:
    for path in sorted((repository / "deploy" / folder).glob("*.yaml")):
        if path.name in ("kustomization.yaml", "values.yaml"):
            continue
        plain += [(d, f"{folder}/{path.name}") for d in documents(path.read_text())]


def changed(kind, change):
    document = copy.deepcopy(next(d for d, _ in plain if d["kind"] == kind))
    change(document)
    return lambda: kubernetes(document, f"a wrong {kind}")


must_fail("Deployment", changed("Deployment", lambda d: d["spec"]["template"]["spec"].update(securityContexts={})))
must_fail("Deployment", changed("Deployment", lambda d: d["spec"].update(replicas="2")))
must_fail("Cluster", changed("Cluster", lambda d: d["spec"]["managed"]["roles"][0].update(replicaton=True)))
must_fail("Cluster", changed("Cluster", lambda d: d["spec"].pop("instances")))
must_fail("Cluster", changed("Cluster", lambda d: d["spec"]["managed"]["roles"][0].update(ensure="maybe")))
must_fail("PostgresCluster", changed("PostgresCluster", lambda d: d["spec"].update(postgresVersion="17")))
must_fail("ServiceMonitor", changed("ServiceMonitor", lambda d: d["spec"]["endpoints"][0].update(authorisation={})))
must_fail("PrometheusRule", changed("PrometheusRule", lambda d: d["spec"]["groups"][0]["rules"][0].pop("expr")))
for document, name in plain:
    kubernetes(document, name)

# The chart.
chart = str(repository / "deploy/helm/pgtrickle")


def render(*arguments):
    return subprocess.run([helm, "template", "app", chart, "--namespace", "db", *arguments], capture_output=True, text=True)


URL = "database.url=postgresql://pgtrickle@db.internal/app"
ALL = [
    URL, "replicas=1", "image.tag=1.2.3", "database.sslmode=verify-ca", "database.caSecret.name=ca",
    "http.tokenSecret.name=token", "http.tlsSecret=tls", "http.queries=false", "options.PGTRICKLE_WORKERS=2",
    "init.enabled=true", "init.url=postgresql://postgres@db.internal/app", "init.grantTo={app,report}",
    "networkPolicy.enabled=true", "serviceMonitor.enabled=true", "serviceMonitor.labels.release=prometheus",
    "prometheusRule.enabled=true", "dashboard.enabled=true", "podAnnotations.team=data", "nodeSelector.disk=ssd",
    "priorityClassName=important", "image.pullSecrets[0].name=registry",
]
CASES = {
    "the least": ["--set", URL],
    "everything": [a for value in ALL for a in ("--set-string" if "options" in value else "--set", value)],
    "CloudNativePG": ["--values", str(repository / "deploy/cloudnative-pg/values.yaml")],
    "Crunchy PGO": ["--values", str(repository / "deploy/crunchy-pgo/values.yaml")],
}
CASES["an upgrade"] = CASES["everything"] + ["--is-upgrade", "--set", "init.upgrade=true"]
rendered = {}
for case, arguments in CASES.items():
    result = render(*arguments)
    if result.returncode != 0:
        sys.exit(f"helm, {case}: {result.stderr}")
    rendered[case] = documents(result.stdout)
    for document in rendered[case]:
        kubernetes(document, f"helm, {case}: {document['kind']}")
for what, arguments in {
    "no database": [],
    "a password in the URL": ["--set", "database.url=postgresql://me:secret@db/app"],
    "a value that is not known": ["--set", URL, "--set", "replica=3"],
    "an unknown sslmode": ["--set", URL, "--set", "database.sslmode=allow"],
    "numbers for nobody": ["--set", URL, "--set", "serviceMonitor.enabled=true"],
    "a job without an address": ["--set", URL, "--set", "init.enabled=true"],
}.items():
    if render(*arguments).returncode == 0:
        sys.exit(f"the chart accepts {what}")
lint = subprocess.run([helm, "lint", "--strict", chart, "--set", URL], capture_output=True, text=True)
if lint.returncode != 0:
    sys.exit(f"helm lint: {lint.stdout}{lint.stderr}")

# For the tests that go on with it.
print(json.dumps({"checked": checked, "failures": failures, "rendered": rendered}))
