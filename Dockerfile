# Images of the predictor, the proxy and both in one (see docs/kubernetes.md):
#
#   docker build --target predictor  -t kserve-llamacpp/predictor .
#   docker build --target proxy      -t kserve-llamacpp/proxy .
#   docker build --target all-in-one -t kserve-llamacpp/all-in-one .
#
# Any Debian with Python 3.11 to 3.13 will do as the base. Bases are named by digest: what is built
# tomorrow is what was tested today. For updates of the base, look a new one up:
#
#   docker buildx imagetools inspect python:3.12-slim-bookworm
ARG BASE_IMAGE=python:3.12-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258
# For predictor-cuda: CUDA 12 with a Python of 3.11 to 3.13 in its distribution.
ARG CUDA_BUILD_IMAGE=nvidia/cuda:12.6.3-devel-ubuntu24.04@sha256:392c0df7b577ecae17a17f6ba7f2009c217bb4422f8431c053ae9af61a8c148a
ARG CUDA_BASE_IMAGE=nvidia/cuda:12.6.3-runtime-ubuntu24.04@sha256:92906d87596d638d35015c6353053121bd299d25943b875763321653884ba924


# llama.cpp: nothing but its pins goes in, so that a change to our own sources never builds it anew.
FROM ${BASE_IMAGE} AS llama-cpp
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY containers/build-llama-cpp bootstrap/vendor/pip-26.3-py3-none-any.whl \
    requirements/llama-cpp.txt requirements/llama-cpp-build.txt ./
RUN ./build-llama-cpp


# What is added to a base: environments made with pip alone, from hash-pinned locks and from our own
# distributions. The environments' Python is the base's, so that both stand or fall together.
FROM ${BASE_IMAGE} AS builder
WORKDIR /build
COPY bootstrap/vendor/pip-26.3-py3-none-any.whl ./
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv --without-pip /opt/venv

FROM builder AS distributions
COPY requirements/bootstrap.txt requirements/
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install \
    --no-deps --only-binary :all: --require-hashes -r requirements/bootstrap.txt
COPY protocol protocol
COPY edge edge
COPY predictor predictor
COPY proxy proxy
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip wheel \
    --no-deps --no-build-isolation --wheel-dir /opt/wheels ./protocol ./edge ./predictor ./proxy

FROM builder AS proxy-environment
COPY requirements/proxy.txt requirements/
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install \
    --no-deps --only-binary :all: --require-hashes -r requirements/proxy.txt
COPY --from=distributions /opt/wheels /opt/wheels
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install --no-deps --no-index \
    /opt/wheels/kserve_llamacpp_protocol-*.whl /opt/wheels/kserve_llamacpp_edge-*.whl \
    /opt/wheels/kserve_llamacpp_proxy-*.whl

FROM builder AS predictor-dependencies
COPY requirements/predictor.txt requirements/
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install \
    --no-deps --only-binary :all: --require-hashes -r requirements/predictor.txt
COPY --from=llama-cpp /opt/wheels/llama_cpp_python-*.whl /opt/wheels/
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install --no-deps --no-index \
    /opt/wheels/llama_cpp_python-*.whl

FROM predictor-dependencies AS predictor-environment
COPY --from=distributions /opt/wheels /opt/wheels
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install --no-deps --no-index \
    /opt/wheels/kserve_llamacpp_protocol-*.whl /opt/wheels/kserve_llamacpp_edge-*.whl \
    /opt/wheels/kserve_llamacpp-*.whl

# The proxy's lock holds the predictor's versions where both have a package.
FROM predictor-dependencies AS all-in-one-environment
COPY requirements/proxy.txt requirements/
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install \
    --no-deps --only-binary :all: --require-hashes -r requirements/proxy.txt
COPY --from=distributions /opt/wheels /opt/wheels
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install --no-deps --no-index \
    /opt/wheels/kserve_llamacpp*.whl


# What all images have in common: nobody's uid (SAP AI Core asks for 65534), and nothing that is
# written while they run but in /tmp, so that the root file system may be read-only.
FROM ${BASE_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY LICENSE /licenses/kserve-llamacpp
WORKDIR /tmp
USER 65534:65534

FROM runtime AS proxy
COPY --from=proxy-environment /opt/venv /opt/venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["python", "-m", "openai_proxy"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kserve-llamacpp proxy" \
    org.opencontainers.image.description="OpenAI's API in front of model servers." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

FROM runtime AS all-in-one
ENV LLAMA_CPP_LIB_PATH=/opt/llama.cpp/lib \
    OPENAI_PROXY_BACKEND=llamacpp \
    OPENAI_PROXY_MODEL_PATH=/mnt/models
COPY --from=llama-cpp /opt/llama.cpp /opt/llama.cpp
COPY --from=all-in-one-environment /opt/venv /opt/venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["python", "-m", "openai_proxy"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kserve-llamacpp all-in-one" \
    org.opencontainers.image.description="The proxy with a predictor that it starts itself: one container, one port." \
    org.opencontainers.image.licenses="Apache-2.0 AND MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"


# UNTESTED: no build of this target was ever run. The predictor with CUDA beside all CPU variants.
FROM ${CUDA_BUILD_IMAGE} AS llama-cpp-cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY containers/build-llama-cpp bootstrap/vendor/pip-26.3-py3-none-any.whl \
    requirements/llama-cpp.txt requirements/llama-cpp-build.txt ./
ARG CUDA_ARCHITECTURES="70;75;80;86;89;90"
RUN ./build-llama-cpp -DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}"

FROM ${CUDA_BASE_IMAGE} AS cuda-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM cuda-base AS predictor-cuda-environment
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY bootstrap/vendor/pip-26.3-py3-none-any.whl ./
COPY requirements/predictor.txt requirements/
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv --without-pip /opt/venv \
    && /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install \
    --no-deps --only-binary :all: --require-hashes -r requirements/predictor.txt
COPY --from=llama-cpp-cuda /opt/wheels /opt/wheels
COPY --from=distributions /opt/wheels /opt/wheels
RUN /opt/venv/bin/python pip-26.3-py3-none-any.whl/pip install --no-deps --no-index \
    /opt/wheels/llama_cpp_python-*.whl /opt/wheels/kserve_llamacpp_protocol-*.whl \
    /opt/wheels/kserve_llamacpp_edge-*.whl /opt/wheels/kserve_llamacpp-*.whl

FROM cuda-base AS predictor-cuda
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    LLAMA_CPP_LIB_PATH=/opt/llama.cpp/lib
COPY LICENSE /licenses/kserve-llamacpp
COPY --from=llama-cpp-cuda /opt/llama.cpp /opt/llama.cpp
COPY --from=predictor-cuda-environment /opt/venv /opt/venv
WORKDIR /tmp
USER 65534:65534
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
ENTRYPOINT ["python", "-m", "kserve_llamacpp"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kserve-llamacpp predictor (CUDA)" \
    org.opencontainers.image.description="Serves GGUF models on KServe through llama.cpp, on NVIDIA GPUs." \
    org.opencontainers.image.licenses="Apache-2.0 AND MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"


# The last one is what `docker build .` makes.
FROM runtime AS predictor
ENV LLAMA_CPP_LIB_PATH=/opt/llama.cpp/lib
COPY --from=llama-cpp /opt/llama.cpp /opt/llama.cpp
COPY --from=predictor-environment /opt/venv /opt/venv
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
ENTRYPOINT ["python", "-m", "kserve_llamacpp"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kserve-llamacpp predictor" \
    org.opencontainers.image.description="Serves GGUF models on KServe through llama.cpp, on any CPU." \
    org.opencontainers.image.licenses="Apache-2.0 AND MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
