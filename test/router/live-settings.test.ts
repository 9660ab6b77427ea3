import assert from "node:assert/strict";
import { ConfigError, loadConfig, overlayConfig, settingsOf } from "../../services/common/config.ts";
import { createMetrics } from "../../services/common/metrics.ts";
import { routerConfig } from "../../services/router/config.ts";
import { CHANGEABLE, createLiveSettings } from "../../services/router/live-settings.ts";
import { logSink } from "../support/log-sink.ts";

const base = loadConfig(routerConfig, { argv: ["--queue.limit", "8"], env: {} });
const SOURCE = "consul tandem/config/";
const overlay = (texts: Record<string, string>) =>
  overlayConfig(routerConfig, base, new Map(Object.entries(texts)), {
    changeable: CHANGEABLE,
    originOf: (key) => SOURCE + key,
  });

function live() {
  const sink = logSink();
  const metrics = createMetrics();
  let changes = 0;
  const settings = createLiveSettings(base, { log: sink.log, metrics, onChange: () => (changes += 1) });
  return {
    settings,
    sink,
    metrics,
    changes: () => changes,
    apply: (texts: Record<string, string>) => settings.apply(new Map(Object.entries(texts)), SOURCE),
  };
}

describe("settings laid over those of the start", () => {
  it("beat every other source, and say where they came from", () => {
    const config = overlay({ "queue.limit": "512", "decode.policy": "round-robin" });
    assert.deepEqual(
      [config["queue.limit"], config["decode.policy"], config["retry.limit"]],
      [512, "round-robin", base["retry.limit"]],
    );
    const shown = settingsOf(config).find(({ key }) => key === "queue.limit");
    assert.deepEqual(shown, { key: "queue.limit", value: "512 requests", origin: "consul tandem/config/queue.limit" });
    assert.equal(settingsOf(config).length, settingsOf(base).length);
    assert.equal(settingsOf(base).find(({ key }) => key === "queue.limit")!.origin, "flag --queue.limit");
  });

  it("are refused with every fault named: a bad value, an unknown key, one that can't change", () => {
    assert.throws(
      () => overlay({ "queue.limit": "many", "queue.limt": "1", "rest.listen": "127.0.0.1:1" }),
      (error: Error) => {
        assert.ok(error instanceof ConfigError);
        assert.match(error.message, /queue.limit: expected an integer from 0 to 65536 \(requests\), got "many"/);
        assert.match(error.message, /queue.limt is not a setting; did you mean queue.limit\?/);
        assert.match(error.message, /rest.listen can't change while the process runs/);
        return true;
      },
    );
  });
});

describe("settings that change while the router runs", () => {
  it("are taken whole, told once, and go back when they are gone", async () => {
    const { settings, sink, metrics, changes, apply } = live();
    const policy = settings.policies.prefill;
    apply({});
    assert.equal(changes(), 0, "nothing changed");
    apply({ "queue.limit": "512", "prefill.policy": "round-robin" });
    assert.equal(settings.config["queue.limit"], 512);
    assert.equal(settings.policies.prefill.name, "round-robin");
    apply({ "queue.limit": "512" });
    assert.equal(settings.policies.prefill.name, policy.name);
    assert.equal(settings.config["queue.limit"], 512);
    apply({});
    assert.equal(settings.config["queue.limit"], 8);
    assert.equal(changes(), 3);
    assert.deepEqual(
      sink.events("setting changed").map(({ setting }) => setting),
      ["prefill.policy", "queue.limit", "prefill.policy", "queue.limit"],
    );
    assert.match(await metrics.text(), /tandem_settings_changes_total\{outcome="taken"\} 3/);
  });

  it("keep a policy's memory while others change", () => {
    const { settings, apply } = live();
    const { decode } = settings.policies;
    apply({ "queue.limit": "1" });
    assert.equal(settings.policies.decode, decode);
  });

  it("are refused whole, with a log line and a metric, and those from before stay in force", async () => {
    const { settings, sink, metrics, apply } = live();
    apply({ "queue.limit": "512" });
    apply({ "queue.limit": "16", "retry.limit": "-1" });
    assert.deepEqual([settings.config["queue.limit"], settings.config["retry.limit"]], [512, base["retry.limit"]]);
    assert.match(settings.refusal, /retry.limit: .*too small/);
    assert.equal(sink.events("changed settings are refused; those from before stay in force").length, 1);
    assert.match(await metrics.text(), /tandem_settings_changes_total\{outcome="refused"\} 1/);
    apply({ "queue.limit": "16" });
    assert.deepEqual([settings.config["queue.limit"], settings.refusal], [16, ""]);
  });
});
