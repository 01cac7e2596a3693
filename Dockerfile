# The worker, beat and Flower are this one image with different commands; docker-compose.yml has them.
# Its steps were run by hand in plain environments, the image itself has not been built yet.
# The base has no digest here, because no registry of images could be asked for one: a release gives it,
# `--build-arg PYTHON_IMAGE=python:3.11-slim@sha256:…`, as CONTRIBUTING.md says.

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS wheels
WORKDIR /src
# What is locked is fetched and checked against its hashes before any of our code is there, so that this layer is kept.
COPY requirements.lock .
RUN python -m venv /build \
    && /build/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement requirements.lock \
    && /build/bin/pip wheel --no-cache-dir --require-hashes --no-deps --requirement requirements.lock --wheel-dir /wheels
COPY LICENSE pyproject.toml ./
COPY api_client api_client
COPY worker worker
COPY tasks tasks
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels ./api_client .

FROM ${PYTHON_IMAGE}
# Only what the worker needs, and only from the wheels that were checked: what builds and installs the wheels stays behind.
RUN --mount=from=wheels,source=/wheels,target=/wheels \
    python -m venv /opt/zot \
    && /opt/zot/bin/pip install --no-cache-dir --no-index --find-links /wheels zot-artifact-worker \
    && useradd --system --uid 10001 --home-dir /data zot \
    && install --directory --owner zot --mode 0700 /data
ENV PATH=/opt/zot/bin:$PATH PYTHONUNBUFFERED=1 ZOT_HOME=/data
# As a number, so that Kubernetes can see that it is not root.
USER 10001
WORKDIR /data
VOLUME /data
CMD ["celery", "-A", "worker.app", "worker", "--loglevel", "INFO"]
