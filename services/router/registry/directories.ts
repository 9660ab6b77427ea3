// Merges the registry and the static list into one list of instances for the pool.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Directory, Doubt, EntriesListener } from "../../discovery/registry.ts";

/**
 * `onChange` gets every instance that any directory lists. If several list one, the first directory's entry is used.
 */
export function watchAll(directories: readonly Directory[], onChange: EntriesListener): AsyncDisposable {
  const known = directories.map((): Parameters<EntriesListener> => [[]]);
  const watches = directories.map((directory, index) =>
    directory.watch((...listed) => {
      known[index] = listed;
      const byId = new Map<string, Info>();
      const allDoubts = new Map<string, Doubt>();
      for (const [entries, doubts] of known) {
        for (const info of entries) {
          if (byId.has(info.instanceId)) continue;
          byId.set(info.instanceId, info);
          const doubt = doubts?.get(info.instanceId);
          if (doubt !== undefined) allDoubts.set(info.instanceId, doubt);
        }
      }
      onChange([...byId.values()], allDoubts);
    }),
  );
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(watches.map((watch) => watch[Symbol.asyncDispose]()));
    },
  };
}
