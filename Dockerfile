# medlab's API, with all that `medlab evaluate` needs. Weights, runs and keys stay outside: see docker-compose.yml.
FROM python:3.11.13-slim-bookworm

# Everything runs as this user. A volume that is mounted at one of these folders first takes its owner from here.
RUN useradd --create-home --home-dir /srv/medlab --uid 1000 medlab \
    && mkdir -p /srv/medlab/.cache /srv/medlab/models /runs \
    && chown -R medlab:medlab /srv/medlab /runs
WORKDIR /opt/medlab

# A step that has to be made again may begin with the data, so their packages are in too. The pinned versions; PyTorch's own index has the build for CPUs, which is a twentieth of the size.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu GRADIO_ANALYTICS_ENABLED=False
COPY settings.ini setup.py MANIFEST.in README.md LICENSE ./
COPY data ./data
COPY nbs ./nbs
COPY medlab ./medlab
RUN pip install --constraint data/constraints.txt ".[data,train,serve,evaluate]" && medlab setup --quiet

USER 1000:1000
WORKDIR /srv/medlab
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=30 \
    CMD ["python", "-c", "import httpx; httpx.get('http://127.0.0.1:8000/health', timeout=4).raise_for_status()"]
CMD ["medlab", "serve", "--run", "/runs/cpu", "--host", "0.0.0.0", "--port", "8000"]
