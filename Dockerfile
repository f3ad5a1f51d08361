# Pushgate in a container, without root: docker build -t pushgate . How to run it: README.md.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN packaging/build stage

FROM debian:bookworm-slim
# The release of the base image says which version: the roots of trust are to be today's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 990 pushgate \
    && useradd --system --uid 990 --gid pushgate --no-create-home --home-dir /var/lib/pushgate --shell /usr/sbin/nologin pushgate \
    && install -d -m 0750 -o pushgate -g pushgate /etc/pushgate /var/lib/pushgate /run/pushgate
COPY --from=build /src/target/release/pushgate /usr/bin/pushgate
COPY --from=build /src/LICENSE-APACHE /src/LICENSE-MIT /src/target/package/stage/THIRD-PARTY-LICENSES /usr/share/doc/pushgate/
# By number, so that whoever runs it can see that it is not root's.
USER 990:990
VOLUME ["/etc/pushgate", "/var/lib/pushgate"]
# Clients; services, and probes, where the configuration has them listen beyond loopback.
EXPOSE 7000 7001 7002
# By the Unix socket that the configuration names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["pushgate", "health"]
ENTRYPOINT ["pushgate"]
CMD ["serve"]
