# The image of triggerx-node and triggerx-coordinator: no compiler, no root, dependencies by their hashes.
#
#   docker build -t triggerx-node .
#   docker run -v ./keeper:/etc/triggerx:ro -v keeper-data:/var/lib/triggerx -p 4001:4001 triggerx-node
#   docker run ... triggerx-node triggerx-coordinator start --config /etc/triggerx/coordinator.toml
#
# Scripts run on a Docker engine whose socket the keeper is given, with its data folder at the same path inside and outside:
# docs/sandbox.md. Without one only jobs without scripts are executed, as containers mostly forbid what bubblewrap needs.
#
# BASE is any Debian or Ubuntu image, also a local one; a Python 3.11 to 3.13 that it lacks is taken from its packages.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY scripts scripts
RUN scripts/system-packages
RUN "$(scripts/find-python)" -m venv /opt/triggerx
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The dependencies change less often than the code: a layer of their own.
COPY requirements-build.lock requirements.lock ./
RUN /opt/triggerx/bin/python -m pip install --require-hashes --no-build-isolation -r requirements-build.lock \
    && /opt/triggerx/bin/python -m pip install --require-hashes --no-build-isolation -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY consensus consensus
COPY p2p p2p
COPY node node
COPY coordinator coordinator
COPY cli cli
RUN /opt/triggerx/bin/python -m pip install --no-deps --no-build-isolation . \
    && /opt/triggerx/bin/python -m pip uninstall --yes --quiet editables hatchling wheel \
    && /opt/triggerx/bin/python -m compileall -q /opt/triggerx

FROM ${BASE}
# libgmp is all that fastecdsa needs at run time; Python only where the base has none.
RUN set -eu; missing=""; \
    [ -e /usr/lib/*/libgmp.so.10 ] || missing="libgmp10"; \
    command -v python3 >/dev/null || missing="$missing python3"; \
    if [ -n "$missing" ]; then \
        apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing && rm -rf /var/lib/apt/lists/*; \
    fi; \
    groupadd --system --gid 10001 triggerx; \
    useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/triggerx --no-create-home --shell /usr/sbin/nologin triggerx; \
    install -d -o 10001 -g 10001 -m 0750 /var/lib/triggerx; \
    install -d -m 0755 /etc/triggerx
COPY --from=build /opt/triggerx /opt/triggerx
ENV PATH=/opt/triggerx/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HEALTH_URL=http://127.0.0.1:9100/livez
WORKDIR /var/lib/triggerx
USER 10001:10001
# Configuration and keystores are read from /etc/triggerx; what must survive is in /var/lib/triggerx.
VOLUME ["/etc/triggerx", "/var/lib/triggerx"]
# 4001: the mesh. 9100: health and metrics. 9002: the coordinator's API.
EXPOSE 4001 9100 9002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/opt/triggerx/bin/python", "-c", "import os, urllib.request as r; r.urlopen(os.environ['HEALTH_URL'], timeout=4)"]
CMD ["triggerx-node", "start", "--config", "/etc/triggerx/node.toml"]
