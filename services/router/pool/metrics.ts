// Exports the view of the fleet to Prometheus.
import type { Load } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Metrics } from "../../common/metrics.ts";
import { type FleetView, type Seen, SIDES } from "./fleet.ts";
import { REASONS } from "./standing.ts";

export function registerPoolMetrics(metrics: Metrics, pool: { readonly view: FleetView }): void {
  const stateOf = ({ standing }: Seen): string => (standing.kind === "serves" ? "serving" : standing.reason);
  const inState = (seen: readonly Seen[], state: string): number => seen.filter((one) => stateOf(one) === state).length;
  metrics.gauge(
    "tandem_pool_instances",
    "Instances that this router knows, by role and standing.",
    ["role", "state"],
    (gauge) => {
      for (const role of SIDES)
        for (const state of ["serving", ...REASONS]) gauge.set({ role, state }, inState(pool.view[role], state));
    },
  );
  metrics.gauge("tandem_breakers_open", "Open breakers: of instances by role, and of pairs.", ["of"], (gauge) => {
    for (const role of SIDES) gauge.set({ of: role }, pool.view[role].filter(isFailing).length);
    gauge.set({ of: "pair" }, pool.view.pairsOut);
  });
  metrics.gauge("tandem_self_doubt", "1 while most instances are suspect together, otherwise 0.", [], (gauge) =>
    gauge.set(pool.view.doubtsItself ? 1 : 0),
  );
  metrics.gauge(
    "tandem_last_resorts",
    "Instances that get legs although their legs fail, because too few others of their side are left.",
    [],
    (gauge) => gauge.set(pool.view.lastResortCount),
  );
  metrics.gauge(
    "tandem_model_ready",
    "1 if a request for the model can be served now, otherwise 0.",
    ["model"],
    (gauge) => {
      gauge.reset();
      for (const [name, model] of pool.view.models) gauge.set({ model: name }, model.lack(false) === undefined ? 1 : 0);
    },
  );
  // Instance ids change with every start, so old ones are removed.
  const ofDecode = (name: string, help: string, read: (load: Load) => number): void =>
    void metrics.gauge(name, help, ["instance"], (gauge) => {
      gauge.reset();
      for (const { instance } of pool.view.decode)
        gauge.set({ instance: instance.instanceId }, instance.load === undefined ? 0 : read(instance.load));
    });
  ofDecode(
    "tandem_kv_orphans",
    "Pushed KV caches whose request is gone and that are not settled yet, by instance.",
    ({ kvOrphans }) => kvOrphans,
  );
  ofDecode(
    "tandem_kv_debt_bytes",
    "KV that may have been pushed and that only a restart of the engine frees, by instance. An estimate.",
    ({ kvDebtBytes }) => Number(kvDebtBytes),
  );
  metrics.gauge(
    "tandem_engine_kv_held",
    "KV caches that arrive at a decode engine or wait there to be claimed, by the gauge of Tandem's own engines, by instance.",
    ["instance"],
    (gauge) => {
      gauge.reset();
      for (const { instance } of pool.view.decode)
        gauge.set({ instance: instance.instanceId }, instance.load?.engineKvHeld ?? 0);
    },
  );
  metrics.gauge(
    "tandem_engine_kv_late",
    "KV transfers that a decode engine of Tandem's own turned away since its start because their request had ended, by instance.",
    ["instance"],
    (gauge) => {
      gauge.reset();
      for (const { instance } of pool.view.decode)
        gauge.set({ instance: instance.instanceId }, instance.load?.engineKvLate ?? 0);
    },
  );
}

function isFailing({ standing }: Seen): boolean {
  return (standing.kind === "serves" ? standing.despite : standing.reason) === "failing";
}
