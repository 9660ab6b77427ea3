# syntax=docker/dockerfile:1
# One image for every process of Tandem: `docker run tandem router`, `... prefill`, `... decode`, `... engine`. The target
# `vllm` is the same on top of vLLM, for instances that start it: `docker build --target vllm -t tandem-vllm .`.

FROM node:24-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts
COPY . .
# The build has no git here: `docker build --build-arg SOURCE_COMMIT=$(git rev-parse HEAD) ...` tells it.
ARG SOURCE_COMMIT
RUN npm run build

FROM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# No install script is needed: every binary comes in a package of its platform.
RUN npm ci --omit=dev --ignore-scripts && npm cache clean --force

FROM vllm/vllm-openai:v0.24.0 AS vllm
ENV NODE_ENV=production
WORKDIR /app
COPY --from=build /usr/local/bin/node /usr/local/bin/node
COPY --from=dependencies /app/node_modules ./node_modules
COPY --from=build /app/package.json ./
COPY --from=build /app/gen ./gen
COPY --from=build /app/dist ./dist
ENV XDG_STATE_HOME=/tmp/state
ENTRYPOINT ["node", "/app/dist/clients/cli/main.js"]
CMD ["--help"]

# Last, and so what is built where no target is named.
FROM node:24-slim AS tandem
ENV NODE_ENV=production
WORKDIR /app
COPY --from=dependencies /app/node_modules ./node_modules
COPY --from=build /app/package.json ./
COPY --from=build /app/gen ./gen
COPY --from=build /app/dist ./dist
# The model of the embedded engine.
COPY --from=build /app/models ./models
# Where engines are recorded, so that a restarted instance finds one left over; /home/node may be read-only.
ENV XDG_STATE_HOME=/tmp/state
USER node
# As process 1 node gets the signals itself, and every process of Tandem handles SIGTERM: it drains. No shell in between.
ENTRYPOINT ["node", "/app/dist/clients/cli/main.js"]
CMD ["--help"]
# For the router. Instances are asked by gRPC: compose.yaml has theirs.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --start-interval=500ms \
  CMD ["node", "/app/dist/clients/cli/main.js", "health", "--rest", "127.0.0.1:3000"]
