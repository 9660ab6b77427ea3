// Settings of `tandem discover`.
import { address, defineConfig, integer, secret, text } from "../../../services/common/config.ts";

export const discoverConfig = defineConfig(
  "discover",
  {
    listen: address({
      default: "127.0.0.1:30001",
      doc: "Where engines ping: the proxy_ip and proxy_port of their kv_connector_extra_config. Pings are not authenticated: whoever reaches this address can have an engine of theirs adopted.",
    }),
    "registry.address": address({
      default: "127.0.0.1:3001",
      alias: "router",
      doc: "The router's gRPC address, where adopted engines are registered.",
    }),
    model: text({
      optional: true,
      env: ["MODEL_ID"],
      doc: "Adopt only engines that serve this. Left out: whatever each one serves.",
    }),
    age_ms: integer({
      default: 10_000,
      min: 4_000,
      max: 600_000,
      unit: "ms",
      doc: "An engine whose last ping is older is let go. vLLM pings every 3 s.",
    }),
    limit: integer({ default: 64, min: 1, max: 1_024, unit: "engines", doc: "Adopted at once." }),
    token: secret({ doc: "Join token that instances, routers and the registry share." }),
    "drain.grace_ms": integer({
      default: 30_000,
      min: 0,
      max: 3_600_000,
      unit: "ms",
      doc: "How long SIGTERM, or an engine's falling silent, lets running answers finish.",
    }),
  },
  {
    summary: "Adopts vLLM engines that ping: each gets a wrapper of its own, as if it had been given with --attach.",
    usage: "tandem discover [--listen 127.0.0.1:30001] [--router 127.0.0.1:3001]",
  },
);
