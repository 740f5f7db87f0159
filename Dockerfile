# The image of every part of the mesh: zex, and the two example servers. It builds
# from source, with nothing but Docker: `docker build -t zex .`
#
#   runtime    what the programs need to run
#   programs   compiles them
#   (last)     runtime with the programs
#
# hooks/build uses `runtime` alone when it has compiled the programs already: it has
# to be the first stage, because builders before BuildKit build all that stand before
# the one that is asked for. For their sake there is nothing here that only BuildKit
# knows, either. Both bases are the same Debian, so libc and libzmq are the same.
ARG BASE=debian:bookworm-slim
ARG RUST=rust:1-bookworm

FROM ${BASE} AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends libzmq5 ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --home-dir /data zex \
 && install --directory --owner zex /data
# /data belongs to zex, and so does a fresh volume that is mounted there.
USER zex
WORKDIR /data
LABEL org.opencontainers.image.title=zex \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENTRYPOINT ["zex"]

FROM ${RUST} AS programs
RUN apt-get update && apt-get install -y --no-install-recommends libzmq3-dev pkg-config
WORKDIR /build
COPY . .
# cargo calls the directory of the profile dev "debug".
ARG PROFILE=release
RUN cargo build --locked --profile ${PROFILE} -p zex -p users-groups --bins \
 && mkdir /programs \
 && cd target/*/ && cp zex users groups /programs/

FROM runtime
COPY --from=programs /programs/ /usr/local/bin/
