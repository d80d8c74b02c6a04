# syntax=docker/dockerfile:1
# hadolint global ignore=DL3042
# pip's cache is a mount, or stays in the first stage.
FROM python:3.13-slim-trixie@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6 AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/venv && python -m venv /opt/build
COPY requirements-image.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: -r requirements-image.txt
COPY requirements-build.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/build/bin/python install --require-hashes --only-binary :all: -r requirements-build.txt
COPY pyproject.toml README.md LICENSE gunicorn.conf.py ./
COPY chronoverse ./chronoverse
RUN /opt/build/bin/python -m hatchling build -t wheel -d dist \
    && pip --python /opt/venv/bin/python install --no-index --no-deps dist/*.whl

FROM python:3.13-slim-trixie@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CHRONOVERSE_DATA_DIR=/var/lib/chronoverse
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/chronoverse --shell /usr/sbin/nologin chronoverse \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/chronoverse /archive
COPY --from=build /opt/venv /opt/venv
WORKDIR /var/lib/chronoverse
VOLUME /var/lib/chronoverse
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["chronoverse", "serve", "--bind", "0.0.0.0:8000"]
