# The page and POST /v1/classify on a CPU or a GPU. No weights, no photographs inside: mount the run's folder.
#
#   docker build -t kd-convnext .
#   docker run --rm -p 127.0.0.1:8734:8734 -e KD_CONVNEXT_PAGE_TOKEN=SECRET -v RUN:/run_folder:ro kd-convnext
#
# With CUDA (a GPU's driver and the NVIDIA container toolkit on the host):
#
#   docker build --build-arg TORCH_INDEX=https://pypi.org/simple -t kd-convnext:cuda .
#   docker run --gpus all ... kd-convnext:cuda --ckpt_path /run_folder/checkpoints/best.ckpt --device cuda
#
# Super-resolution weights of the training, where it used any: mount them and add --sr_weights to the command.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    KD_CONVNEXT_CACHE=/home/reader/cache

# torch and torchvision from one index, in the versions of requirements.lock: they must fit each other. The default has
# no CUDA, which PyPI's files for Linux bring along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install torch==2.15.0 torchvision==0.29.2 --index-url "${TORCH_INDEX}"

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY kd_convnext kd_convnext
# hadolint ignore=DL3013
RUN pip install ".[page,heic,dicom]" && rm -rf /source/*

RUN useradd --create-home --uid 10001 reader
USER 10001
WORKDIR /home/reader
EXPOSE 8734
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8734/healthz', timeout=4)"]
ENTRYPOINT ["kd-convnext", "page", "--host", "0.0.0.0", "--port", "8734", "--open_browser", "false"]
CMD ["--ckpt_path", "/run_folder/checkpoints/best.ckpt"]
