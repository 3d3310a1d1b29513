# syntax=docker/dockerfile:1.10
# The image of Assay, in two variants:
#
#   docker build --target cpu  --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" -t assay:0.1.0 .
#   docker build --target cuda --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" -t assay:0.1.0-cuda .
#
# Bases are pinned to a release; pin them to a digest with --build-arg RUST_IMAGE=...@sha256:... and so on. Builder and
# runtime of a variant are of one distribution, so that the binary finds the C library it was linked against.
# tests/image/check.sh checks what can be checked without a container engine.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm
ARG CPU_IMAGE=docker.io/library/debian:12.11-slim
ARG CUDA_BUILD_IMAGE=docker.io/nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_IMAGE=docker.io/nvidia/cuda:13.0.1-runtime-ubuntu24.04

# ------------------------------------------------------------------------------------------------ building, CPU
FROM ${RUST_IMAGE} AS tools-cpu
RUN apt-get update \
 && apt-get install --yes --no-install-recommends cmake g++ make perl pkg-config \
 && rm -rf /var/lib/apt/lists/*

# ----------------------------------------------------------------------------------------------- building, CUDA
FROM ${CUDA_BUILD_IMAGE} AS tools-cuda
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates cmake curl g++ make perl pkg-config \
 && rm -rf /var/lib/apt/lists/* \
 && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs \
  | sh -s -- -y --no-modify-path --profile minimal --default-toolchain 1.95.0
# The oldest compute capability that the kernels are built for; there is no GPU to ask while an image is built.
ARG CUDA_COMPUTE_CAP=80
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP}

# -------------------------------------------------------------------- dependencies first: a layer that seldom changes
FROM tools-cpu AS dependencies-cpu
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src/model/kernels/build.rs src/model/kernels/build.rs
RUN mkdir -p src tests && touch src/lib.rs tests/main.rs && echo 'fn main() {}' > src/main.rs \
 && cargo build --release --locked --bin assay

FROM tools-cuda AS dependencies-cuda
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src/model/kernels/build.rs src/model/kernels/build.rs
RUN mkdir -p src tests && touch src/lib.rs tests/main.rs && echo 'fn main() {}' > src/main.rs \
 && cargo build --release --locked --features cuda --bin assay

FROM dependencies-cpu AS build-cpu
COPY config config
COPY jobs jobs
COPY models models
COPY schemas schemas
COPY src src
# cargo goes by times, and those of the sources are older than those of their stand-ins.
RUN find src -name '*.rs' -exec touch {} + && cargo build --release --locked --bin assay \
 && strip --strip-debug target/release/assay && install -D target/release/assay /out/assay

FROM dependencies-cuda AS build-cuda
COPY config config
COPY jobs jobs
COPY models models
COPY schemas schemas
COPY src src
RUN find src -name '*.rs' -exec touch {} + && cargo build --release --locked --features cuda --bin assay \
 && strip --strip-debug target/release/assay && install -D target/release/assay /out/assay

# ------------------------------------------------------------------------------------------------------ runtime
FROM ${CUDA_IMAGE} AS cuda
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="assay" \
      org.opencontainers.image.description="Streaming batch inference from Kafka to Delta tables, CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}-cuda" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /etc/assay/config /etc/assay/jobs /models
COPY --from=build-cuda /out/assay /usr/local/bin/assay
ENV HOME=/tmp NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Writes nothing outside of /tmp: run it with a read-only root file system and a volume there.
USER 65532:65532
WORKDIR /tmp
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m --retries=3 CMD ["/usr/local/bin/assay", "health"]
ENTRYPOINT ["/usr/local/bin/assay"]
CMD ["--help"]

FROM ${CPU_IMAGE} AS cpu
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="assay" \
      org.opencontainers.image.description="Streaming batch inference from Kafka to Delta tables, CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /etc/assay/config /etc/assay/jobs /models
COPY --from=build-cpu /out/assay /usr/local/bin/assay
ENV HOME=/tmp
# Writes nothing outside of /tmp: run it with a read-only root file system and a volume there.
USER 65532:65532
WORKDIR /tmp
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m --retries=3 CMD ["/usr/local/bin/assay", "health"]
ENTRYPOINT ["/usr/local/bin/assay"]
CMD ["--help"]
