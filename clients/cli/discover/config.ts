// Settings of `tandem discover`.
import { address, defineConfig, integer, milliseconds, secret, text } from "../../../services/common/config.ts";

export const discoverConfig = defineConfig(
  "discover",
  {
    listen: address(
      "listen",
      "Address that engines ping: the proxy_ip and proxy_port of their kv_connector_extra_config. Pings are not authenticated: any host that reaches this address can have its own engine adopted.",
      { default: "127.0.0.1:30001" },
    ),
    registryAddress: address("registry.address", "The router's gRPC address, where adopted engines are registered.", {
      default: "127.0.0.1:3001",
      alias: "router",
    }),
    model: text("model", "Adopt only engines that serve this model. Left out: engines of any model.", {
      optional: true,
      env: ["MODEL_ID"],
    }),
    ageMs: milliseconds("age_ms", "Release an engine whose last ping is older than this. vLLM pings every 3 s.", {
      default: 10_000,
      min: 4_000,
      max: 600_000,
    }),
    limit: integer("limit", "Engines that may be adopted at once.", {
      default: 64,
      min: 1,
      max: 1_024,
      unit: "engines",
    }),
    token: secret("token", "Join token that instances, routers and the registry share."),
    drainGraceMs: milliseconds(
      "drain.grace_ms",
      "How long running answers may take to finish after SIGTERM, or after their engine stops pinging.",
      { default: 30_000, min: 0 },
    ),
  },
  {
    summary: "Adopts vLLM engines that ping. Each gets its own wrapper, as if its URL had been given with --attach.",
    usage: "tandem discover [--listen 127.0.0.1:30001] [--router 127.0.0.1:3001]",
  },
);
