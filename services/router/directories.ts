// All places that say who is there, as one list for the pool: the embedded registry and the static list together.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Directory } from "../discovery/registry.ts";

/** `onChange` gets every instance known to any of them; the first to name an instance is believed. */
export function watchAll(
  directories: readonly Directory[],
  onChange: (entries: readonly Info[]) => void,
): { [Symbol.asyncDispose](): Promise<void> } {
  const known: (readonly Info[])[] = directories.map(() => []);
  const watches = directories.map((directory, index) =>
    directory.watch((entries) => {
      known[index] = entries;
      const byId = new Map<string, Info>();
      for (const info of known.flat()) if (!byId.has(info.instanceId)) byId.set(info.instanceId, info);
      onChange([...byId.values()]);
    }),
  );
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(watches.map((watch) => watch[Symbol.asyncDispose]()));
    },
  };
}
