# syntax=docker/dockerfile:1
# One image for every process of Tandem: `docker run tandem router`, `... prefill`, `... decode`, `... engine`. The target
# `vllm` is the same on top of vLLM, for instances that start it: `docker build --target vllm -t tandem-vllm .`.
#
# Exact tags, not digests: the project's machines reach no registry of images, so no digest could be looked up or checked.
# To pin one, or to pull from a mirror: --build-arg NODE_IMAGE=mirror.example/node@sha256:...
ARG NODE_IMAGE=docker.io/library/node:24.21.0-bookworm-slim
# The vLLM that test/live/ runs with NIXL, the default connector. For p2p-nccl: v0.23.0, the last one that has it.
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.32.0

FROM ${NODE_IMAGE} AS build
WORKDIR /app
COPY package.json package-lock.json ./
# No install script is needed: every binary comes in a package of its platform. The secret is for a registry of your own:
# docker build --secret id=npmrc,src=$HOME/.npmrc .
RUN --mount=type=secret,id=npmrc,target=/root/.npmrc npm ci --ignore-scripts
COPY . .
# The build has no git here: `docker build --build-arg SOURCE_COMMIT=$(git rev-parse HEAD) ...` tells it.
ARG SOURCE_COMMIT
RUN npm run build && npm prune --omit=dev --ignore-scripts

# What is needed at run time, for both images.
FROM ${NODE_IMAGE} AS app
WORKDIR /app
COPY --from=build /app/node_modules ./node_modules
COPY --from=build /app/package.json ./
COPY --from=build /app/gen ./gen
COPY --from=build /app/dist ./dist
# The model of the embedded engine.
COPY --from=build /app/models/tandem-tiny/tandem-tiny-q8_0.gguf ./models/tandem-tiny/

FROM ${VLLM_IMAGE} AS vllm
ENV NODE_ENV=production
WORKDIR /app
COPY --from=build /usr/local/bin/node /usr/local/bin/node
COPY --from=app /app ./
# Where engines are recorded, so that a restarted instance finds one left over.
ENV XDG_STATE_HOME=/tmp/state
# vLLM's image has this user, but runs as root unless told otherwise. compose.yaml mounts volumes on these folders, and a
# new volume takes over the owner.
RUN mkdir -p /home/vllm/.cache/huggingface /gpus && chown -R 2000:0 /home/vllm/.cache /gpus
USER 2000:0
ENTRYPOINT ["node", "/app/dist/clients/cli/main.js"]
CMD ["--help"]

# Last, and so what is built where no target is named.
FROM app AS tandem
ENV NODE_ENV=production
# As above; /home/node may be read-only.
ENV XDG_STATE_HOME=/tmp/state
USER node
# As process 1 node gets the signals itself, and every process of Tandem handles SIGTERM: it drains. No shell in between.
ENTRYPOINT ["node", "/app/dist/clients/cli/main.js"]
CMD ["--help"]
