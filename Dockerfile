# One image for every process of podwire: API server, nodes, and the command. The programs that pods run are this image's own.
#
#   docker build -t podwire .
#
# BASE may be any Debian-like image with Python 3.11 or newer. PIP_ARGS is for machines without a package index
# ("--no-index --find-links=/src/build/wheels").
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ARG PACKAGES="curl iproute2 busybox-static iputils-ping"
RUN for program in curl ip busybox ping; do command -v $program >/dev/null || missing=1; done; \
    if [ -n "$missing" ]; then \
      apt-get update -qq && apt-get install -y -qq --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*; \
    fi

WORKDIR /src
COPY . .
ARG PIP_ARGS=""
RUN python3 -m venv /opt/podwire && /opt/podwire/bin/pip install --no-cache-dir --disable-pip-version-check ${PIP_ARGS} .
ENV PATH=/opt/podwire/bin:$PATH
