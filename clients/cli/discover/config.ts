// Settings of `tandem discover`.
import { address, defineConfig, integer, milliseconds, secret, text } from "../../../services/common/config.ts";

export const discoverConfig = defineConfig(
  "discover",
  {
    listen: address(
      "listen",
      "Where engines ping: the proxy_ip and proxy_port of their kv_connector_extra_config. Pings are not authenticated: whoever reaches this address can have an engine of theirs adopted.",
      { default: "127.0.0.1:30001" },
    ),
    registryAddress: address("registry.address", "The router's gRPC address, where adopted engines are registered.", {
      default: "127.0.0.1:3001",
      alias: "router",
    }),
    model: text("model", "Adopt only engines that serve this. Left out: whatever each one serves.", {
      optional: true,
      env: ["MODEL_ID"],
    }),
    ageMs: milliseconds("age_ms", "An engine whose last ping is older is let go. vLLM pings every 3 s.", {
      default: 10_000,
      min: 4_000,
      max: 600_000,
    }),
    limit: integer("limit", "Adopted at once.", { default: 64, min: 1, max: 1_024, unit: "engines" }),
    token: secret("token", "Join token that instances, routers and the registry share."),
    drainGraceMs: milliseconds(
      "drain.grace_ms",
      "How long SIGTERM, or an engine's falling silent, lets running answers finish.",
      { default: 30_000, min: 0 },
    ),
  },
  {
    summary: "Adopts vLLM engines that ping: each gets a wrapper of its own, as if it had been given with --attach.",
    usage: "tandem discover [--listen 127.0.0.1:30001] [--router 127.0.0.1:3001]",
  },
);
