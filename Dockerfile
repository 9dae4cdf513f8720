# syntax=docker/dockerfile:1
# The image of pgtrickle: one program on an empty root directory, as user 65532.
#
# Checked by tests: this file's content, and the root directory that it makes: the program runs there read-only, without
# capabilities, as process 1, against a real server, and drains on SIGTERM. Not run: `docker build` itself.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" -t pgtrickle:0.1.0 .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges \
#     -e DATABASE_URL=postgresql://pgtrickle@db.internal/app \
#     -e PGTRICKLE_PASSWORD_FILE=/run/secrets/password -v ./password:/run/secrets/password:ro pgtrickle:0.1.0

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# The same sources give the same program: no paths of this machine, no times, the crates of the lock file.
ENV CARGO_INCREMENTAL=0 \
    CARGO_TERM_COLOR=never \
    RUSTFLAGS="--remap-path-prefix=/build=. --remap-path-prefix=/usr/local/cargo=cargo" \
    SOURCE_DATE_EPOCH=0
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --release --locked --bin pgtrickle \
    && strip --strip-debug target/release/pgtrickle \
    && deploy/image/assemble.sh target/release/pgtrickle /image

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="pgtrickle" \
      org.opencontainers.image.description="Stream tables for any PostgreSQL, kept fresh from outside the server" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="$SOURCE"
COPY --from=build /image /
USER 65532:65532
EXPOSE 9642
STOPSIGNAL SIGTERM
# Whether the process answers. What a stopped database means for it is told by `healthcheck --ready`.
HEALTHCHECK --interval=15s --timeout=6s --start-period=20s --retries=3 CMD ["/usr/bin/pgtrickle", "healthcheck"]
ENTRYPOINT ["/usr/bin/pgtrickle"]
CMD ["run"]
