# MorphZoo with its bundles and weights:
#   docker build -t morphzoo .
#   docker run --rm -v "$PWD:/data" morphzoo register moving.nii.gz fixed.nii.gz -o out
# For a GPU: docker build --build-arg CONSTRAINTS= ..., and docker run --gpus all ...
FROM python:3.11-slim
ARG CONSTRAINTS=constraints-cpu.txt
COPY . /source
RUN python -m pip install --no-cache-dir ${CONSTRAINTS:+-c /source/$CONSTRAINTS} "/source[demo]" \
    && rm -rf /source \
    && morphzoo info
WORKDIR /data
ENTRYPOINT ["morphzoo"]
CMD ["--help"]
