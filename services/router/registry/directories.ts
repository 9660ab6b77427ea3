// Merges the registry and the static list into one list of instances for the pool.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Directory, EntriesListener, Objection } from "../../discovery/registry.ts";

/**
 * `onChange` gets every instance that any directory lists. If several list one, the first directory's entry is used.
 */
export function watchAll(directories: readonly Directory[], onChange: EntriesListener): AsyncDisposable {
  const known = directories.map((): Parameters<EntriesListener> => [[]]);
  const watches = directories.map((directory, index) =>
    directory.watch((...listed) => {
      known[index] = listed;
      const byId = new Map<string, Info>();
      const allObjections = new Map<string, Objection>();
      for (const [entries, objections] of known) {
        for (const info of entries) {
          if (byId.has(info.instanceId)) continue;
          byId.set(info.instanceId, info);
          const objection = objections?.get(info.instanceId);
          if (objection !== undefined) allObjections.set(info.instanceId, objection);
        }
      }
      onChange([...byId.values()], allObjections);
    }),
  );
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(watches.map((watch) => watch[Symbol.asyncDispose]()));
    },
  };
}
