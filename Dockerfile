# Images that serve a model.
#
#   docker build --target cpu -t digpt:cpu .
#   docker run --rm -p 8000:8000 digpt:cpu
#   docker build --target gpu -t digpt:gpu . && docker run --rm --gpus all -p 8000:8000 digpt:gpu
#   docker run --rm -p 8000:8000 -v "$PWD/runs:/models:ro" digpt:cpu \
#       python -m serve --host 0.0.0.0 --port 8000 --model /models/zeroshot/ckpt.pt
#
# TORCH_INDEX, a package index of PyTorch's CPU builds, makes the cpu image far smaller: pip's default build for Linux carries CUDA.
ARG PYTHON_IMAGE=python:3.11-slim
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04


# --- cpu: dependencies, built where pip's leftovers are thrown away ---
FROM ${PYTHON_IMAGE} AS cpu-build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
RUN /opt/venv/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
# Without the packages beside it, this installs the dependencies only: a changed source file leaves the layer cached.
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN /opt/venv/bin/pip install --constraint constraints.txt .


FROM ${PYTHON_IMAGE} AS cpu
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRADIO_ANALYTICS_ENABLED=False
RUN useradd --create-home --uid 10001 digpt
COPY --from=cpu-build /opt/venv /opt/venv
WORKDIR /srv/digpt
COPY LICENSE ./
COPY data/emoji data/emoji
COPY digpt digpt
COPY serve serve
COPY app app
USER digpt
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/health/ready', timeout=4)"]
# Inside a container the loopback address would reach nobody: bind every interface, and let -p decide who gets in.
CMD ["python", "-m", "serve", "--host", "0.0.0.0", "--port", "8000"]


# --- gpu: the same on NVIDIA's base, with the CUDA libraries of onnxruntime's provider ---
FROM ${CUDA_IMAGE} AS gpu-base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*


FROM gpu-base AS gpu-build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN /opt/venv/bin/pip install --constraint constraints.txt '.[gpu]'


FROM gpu-base AS gpu
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRADIO_ANALYTICS_ENABLED=False
RUN useradd --create-home --uid 10001 digpt
COPY --from=gpu-build /opt/venv /opt/venv
WORKDIR /srv/digpt
COPY LICENSE ./
COPY data/emoji data/emoji
COPY digpt digpt
COPY serve serve
COPY app app
COPY export export
# What reaches the GPU is onnxruntime, so the model is exported first; torch serves on the CPU.
RUN python -m export bundled --to onnx --output /srv/digpt/artifact
USER digpt
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/health/ready', timeout=4)"]
CMD ["python", "-m", "serve", "--host", "0.0.0.0", "--port", "8000", "--model", "emoji-tiny=/srv/digpt/artifact"]
