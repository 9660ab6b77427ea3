// The instances of a router as a table.
import { type Instance, Standing } from "#gen/tandem/router/v1/router_pb.js";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { renderTable, type Column } from "../../common/table.ts";

const COLUMNS: readonly Column<Instance>[] = [
  { title: "ID", cell: (instance) => instance.info?.instanceId ?? "" },
  { title: "ROLE", cell: (instance) => word(Role, instance.info?.role) },
  { title: "STATE", cell: (instance) => word(Standing, instance.standing) },
  { title: "MODEL", cell: (instance) => instance.info?.model ?? "" },
  {
    title: "ENGINE",
    cell: (instance) => [instance.info?.engine, instance.info?.engineVersion].filter(Boolean).join(" "),
  },
  { title: "GRPC", cell: (instance) => instance.info?.grpcAddress ?? "" },
  { title: "KV", cell: (instance) => instance.info?.kvAddress ?? "" },
  { title: "LEGS", align: "right", cell: (instance) => `${instance.legs}` },
  { title: "SLOTS", align: "right", cell: slots },
  {
    title: "LOAD AGE",
    align: "right",
    cell: (instance) => (instance.load === undefined ? "" : `${instance.loadAgeMs} ms`),
  },
  { title: "REASON", cell: (instance) => instance.reason },
];

export function renderInstances(instances: readonly Instance[]): string {
  if (instances.length === 0)
    return "No instances. Start some with `tandem prefill` and `tandem decode`, or all at once with `tandem up`.";
  return renderTable(instances, COLUMNS, true);
}

/** Free slots of all slots, as the instance last reported. */
function slots(instance: Instance): string {
  const limit = instance.info?.slotLimit ?? 0;
  if (limit === 0) return "";
  return instance.load === undefined ? `?/${limit}` : `${instance.load.freeSlots}/${limit} free`;
}

/** The name of a value as people write it: `serving`. A value of a later version is shown by its number. */
function word(names: Readonly<Record<string, string | number>>, value: number | undefined): string {
  if (value === undefined || value === 0) return "";
  const name = names[value];
  return typeof name === "string" ? name.toLowerCase() : `#${value}`;
}
