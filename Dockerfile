# syntax=docker/dockerfile:1
# One image for every process of Tandem: `docker run tandem router`, `... prefill`, `... decode`, `... engine`.

FROM node:24-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts
COPY . .
RUN npm run build

FROM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# No install script is needed: every binary comes in a package of its platform.
RUN npm ci --omit=dev --ignore-scripts && npm cache clean --force

FROM node:24-slim
ENV NODE_ENV=production
WORKDIR /app
COPY --from=dependencies /app/node_modules ./node_modules
COPY --from=build /app/package.json ./
COPY --from=build /app/gen ./gen
COPY --from=build /app/dist ./dist
# Where engines are recorded, so that a restarted instance finds one left over; /home/node may be read-only.
ENV XDG_STATE_HOME=/tmp/state
USER node
# As process 1 node gets the signals itself, and every process of Tandem handles SIGTERM: it drains. No shell in between.
ENTRYPOINT ["node", "/app/dist/clients/cli/main.js"]
CMD ["--help"]
# For the router. Instances are asked by gRPC: compose.yaml has theirs.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --start-interval=500ms \
  CMD ["node", "/app/dist/clients/cli/main.js", "health", "--rest", "127.0.0.1:3000"]
