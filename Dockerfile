# SPDX-License-Identifier: Apache-2.0
# Three images, one per target: operator, jobs, serving. Each holds its own rooms and their pinned dependencies, and no
# more: what is not copied into a build stage cannot be in its wheel. The final stages have no compiler and no pip, run
# as a numeric non-root user and work with a read-only root filesystem (a writable /tmp is enough).
ARG PYTHON_IMAGE=python:3.11-slim

# --- build: makes environments that hold no pip of their own -----------------------------------------------------------
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN ["python", "-m", "pip", "install", "--require-hashes", "--requirement", "requirements/build.txt"]
RUN ["python", "-m", "venv", "--without-pip", "/opt/kompakt"]
COPY pyproject.toml README.md LICENSE ./
COPY crds/kompakt crds/kompakt

FROM build AS build-operator
COPY requirements/operator.txt requirements/operator.txt
RUN ["python", "-m", "pip", "--python", "/opt/kompakt/bin/python", "install", "--require-hashes", "--requirement", "requirements/operator.txt"]
COPY controllers/kompakt controllers/kompakt
COPY operator/kompakt operator/kompakt
RUN ["python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "/wheels", "."]
RUN ["python", "-m", "pip", "--python", "/opt/kompakt/bin/python", "install", "--no-deps", "--no-index", "--find-links", "/wheels", "kompakt"]

FROM build AS build-jobs
COPY requirements/jobs.txt requirements/jobs.txt
RUN ["python", "-m", "pip", "--python", "/opt/kompakt/bin/python", "install", "--require-hashes", "--requirement", "requirements/jobs.txt"]
COPY jobs/kompakt jobs/kompakt
RUN ["python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "/wheels", "."]
RUN ["python", "-m", "pip", "--python", "/opt/kompakt/bin/python", "install", "--no-deps", "--no-index", "--find-links", "/wheels", "kompakt"]

FROM build AS build-serving
COPY requirements/serving.txt requirements/serving.txt
RUN ["python", "-m", "pip", "--python", "/opt/kompakt/bin/python", "install", "--require-hashes", "--requirement", "requirements/serving.txt"]
COPY serving/kompakt serving/kompakt
RUN ["python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "/wheels", "."]
RUN ["python", "-m", "pip", "--python", "/opt/kompakt/bin/python", "install", "--no-deps", "--no-index", "--find-links", "/wheels", "kompakt"]

# --- runtime: what the three images share ------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS runtime
# HOME and USER: a numeric user has no entry in /etc/passwd, and libraries that cache ask for both.
# PYTHONSAFEPATH: the working directory never decides what is imported.
ENV HOME=/tmp \
    PATH=/opt/kompakt/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    USER=kompakt
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.title="Kompakt"
WORKDIR /srv
USER 65532:65532

FROM runtime AS operator
COPY --from=build-operator /opt/kompakt /opt/kompakt
ENTRYPOINT ["python", "-m", "kompakt.operator"]

FROM runtime AS jobs
COPY --from=build-jobs /opt/kompakt /opt/kompakt
ENTRYPOINT ["python", "-m", "kompakt.jobs"]

FROM runtime AS serving
COPY --from=build-serving /opt/kompakt /opt/kompakt
ENTRYPOINT ["python", "-m", "kompakt.serving"]
