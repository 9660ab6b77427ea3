// Checks whether package-lock.json can be installed on every platform. Some registries leave entries out of the lock
// that they write (buf 1.75.0 was such a case), and `npm ci` then fails, or installs no binary, on other machines.

/** Returns one sentence per fault; empty if the lock has no faults. */
export function lockFaults(lock) {
  const faults = [];
  for (const [path, entry] of Object.entries(lock.packages ?? {})) {
    const name = path === "" ? lock.name : path.replace(/^.*node_modules\//, "");
    if (path !== "" && entry.link !== true) {
      if (entry.version === undefined) faults.push(`${path} has no version`);
      if (entry.integrity === undefined && entry.inBundle !== true) faults.push(`${path} has no integrity`);
      if (entry.resolved?.startsWith("http")) {
        faults.push(
          `${path} names its registry host; .npmrc's omit-lockfile-registry-resolved makes npm leave the host out`,
        );
      }
    }
    for (const optional of Object.keys(entry.optionalDependencies ?? {})) {
      if (lookUp(lock.packages, path, optional) === undefined)
        faults.push(`${name} needs ${optional} on some platform, but the lock has no entry for it`);
    }
  }
  return faults;
}

/** Resolves like Node: in the package's own node_modules, then in those of the folders above. */
function lookUp(packages, from, name) {
  for (let folder = from; ; folder = folder.replace(/\/?node_modules\/(@[^/]+\/)?[^/]+$/, "")) {
    const entry = packages[folder === "" ? `node_modules/${name}` : `${folder}/node_modules/${name}`];
    if (entry !== undefined || folder === "") return entry;
  }
}
