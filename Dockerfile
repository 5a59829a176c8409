# Millstream: the worker `millstream` and the operator `millstream-operator`, in one image.
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag millstream:0.1.0 .
ARG RUST_VERSION=1.95.0
ARG DEBIAN=bookworm
# Or the same from a mirror, or by its digest.
ARG RUST_IMAGE=rust:${RUST_VERSION}-${DEBIAN}

FROM ${RUST_IMAGE} AS build
ARG RUST_VERSION
# The image's own toolchain: rust-toolchain.toml would have rustfmt and clippy fetched.
ENV RUSTUP_TOOLCHAIN=${RUST_VERSION}
# What `tools/setup build` asks for, beside what the image has.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates cmake libclang-dev libssl-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    cargo build --locked --release --target-dir /target --package millstream --package millstream-operator \
    && mkdir /out \
    && cp /target/release/millstream /target/release/millstream-operator /out/

# The programs, the libraries that they name, and whom to trust: no shell, no package manager. A library that is missing fails here.
RUN set -eu; \
    mkdir -p /image/usr/bin /image/etc/ssl/certs; \
    install -d -m 1777 /image/tmp; \
    for program in millstream millstream-operator; do \
        strip -o "/image/usr/bin/$program" "/out/$program"; \
    done; \
    ldd /out/millstream /out/millstream-operator \
        | awk '$2 == "=>" && $3 ~ "^/" { print $3 } NF == 2 && $1 ~ "^/" { print $1 }' | sort -u \
        | xargs cp --dereference --parents --target-directory /image; \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/; \
    printf 'root:x:0:0::/:/bin/false\nnonroot:x:65532:65532::/:/bin/false\n' > /image/etc/passwd; \
    printf 'root:x:0:\nnonroot:x:65532:\n' > /image/etc/group; \
    printf 'hosts: files dns\n' > /image/etc/nsswitch.conf; \
    for program in millstream millstream-operator; do \
        chroot /image "/usr/bin/$program" --version; \
    done

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="millstream" \
      org.opencontainers.image.description="Real-time ingestion of customer data: workers and operator" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="https://github.com/millstream/millstream" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image /
# OpenSSL's own place for certificates is not here.
ENV PATH=/usr/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# Who the charts and the operator run it as. It writes to its volumes only (/var/lib/millstream, /tmp).
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/usr/bin/millstream"]
