// Containers where no daemon runs and nothing can be pulled: podman and buildah over a storage that is thrown away, base
// images made from packages. Needs Linux, root and, the first time, a package index.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { CACHE, MAY_FETCH } from "../../support/tools.ts";

const exec = promisify(execFile);

const PODMAN_COMPOSE_VERSION = "1.6.0";
const COMPOSE_VENV = join(CACHE, `podman-compose-${PODMAN_COMPOSE_VERSION}`);
/** Of the major version that comes with Node 24. */
const NPM_VERSION = "11.19.1";
const DEBIAN_PACKAGES = [
  ...["podman", "buildah", "runc", "uidmap", "catatonit"],
  ...["netavark", "aardvark-dns", "containernetworking-plugins", "iptables"],
  ...["debootstrap", "debian-archive-keyring", "python3-venv"],
];

const OUTPUT_BYTES = 64 * 1024 * 1024;
/** Of Docker's images. */
const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

export interface Containers {
  podman(...args: string[]): Promise<string>;
  /** Builds an image. `args` as for `docker build`. */
  build(...args: string[]): Promise<string>;
  /** podman-compose, with the variables that the file reads. */
  compose(env: Readonly<Record<string, string>>, ...args: string[]): Promise<string>;
  /** Makes the image of Node that `name` asks for, such as `docker.io/library/node:24.21.0-bookworm-slim`. */
  makeNodeImage(name: string): Promise<void>;
  /** Makes an image by a Dockerfile of these lines. `context` is the folder that they copy from. */
  makeImage(name: string, lines: readonly string[], context?: string): Promise<void>;
  /** Removes every container, network and image. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Or why there can be none. Installs what is missing where tests may do so. */
export async function openContainers(): Promise<Containers | { readonly missing: string }> {
  if (!MAY_FETCH) return { missing: "builds images and runs containers (CI=true or `npm test -- --all` does)" };
  if (process.platform !== "linux" || process.getuid!() !== 0) return { missing: "needs Linux and root" };
  await mkdir(CACHE, { recursive: true });
  const missing = await installTools();
  if (missing !== undefined) return { missing };

  const folder = await mkdtemp(join(CACHE, "containers-"));
  const env = { ...process.env, ...(await settings(folder)) };
  const run = async (file: string, args: readonly string[], more: Readonly<Record<string, string>> = {}) => {
    const options = { env: { ...env, ...more }, maxBuffer: OUTPUT_BYTES };
    const { stdout, stderr } = await exec(file, args, options).catch((error: Error & { stdout: string }) => {
      throw new Error(`${error.message}\n${error.stdout}`);
    });
    return (stdout + stderr).trim();
  };
  // A process of its own that outlives us, so that nothing stays behind a test run that was killed.
  const cleaner = spawn("/bin/sh", ["-c", CLEAN_UP, "sh", folder], {
    env,
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
  const cleaned = once(cleaner, "exit");

  const [dockerfile, empty] = [join(folder, "Dockerfile"), join(folder, "empty")];
  await mkdir(empty);
  const build = async (...args: string[]): Promise<string> =>
    run("buildah", ["bud", "--isolation", "chroot", "--layers", ...(await npmFlags(folder)), ...args]);
  return {
    podman: (...args) => run("podman", args),
    build,
    compose: (more, ...args) => run(join(COMPOSE_VENV, "bin/podman-compose"), args, more),
    async makeNodeImage(name) {
      await run("podman", ["import", "--change", `ENV PATH=${PATH}`, await nodeRoot(name), name]);
    },
    async makeImage(name, lines, context = empty) {
      await writeFile(dockerfile, lines.join("\n"));
      await build("--file", dockerfile, "--tag", name, context);
    },
    async [Symbol.asyncDispose]() {
      cleaner.stdin.end();
      await cleaned;
    },
  };
}

const CLEAN_UP = `
cat >/dev/null
podman rm --force --all --time 0
podman network ls --quiet | xargs -r podman network rm --force
buildah rm --all
umount --recursive "$1/root/overlay"
rm -rf "$1"`;

/** Storage and settings of our own, which podman, buildah and podman-compose find by these variables. */
async function settings(folder: string): Promise<Record<string, string>> {
  const [storage, containers] = [join(folder, "storage.conf"), join(folder, "containers.conf")];
  await writeFile(storage, `[storage]\ndriver = "overlay"\ngraphroot = "${folder}/root"\nrunroot = "${folder}/run"\n`);
  // runc and cgroupfs: crun refuses mixed cgroups, and there may be no systemd. The default limits may be above ours.
  await writeFile(
    containers,
    `[containers]
default_ulimits = ["nofile=4096:4096", "nproc=2000:2000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "${folder}/tmp"
[network]
network_backend = "netavark"
network_config_dir = "${folder}/networks"
`,
  );
  return {
    CONTAINERS_STORAGE_CONF: storage,
    CONTAINERS_CONF: containers,
    // Without systemd there are no timers; health checks are run by hand.
    DISABLE_HC_SYSTEMD: "true",
  };
}

/** @returns What is missing and can't be installed. */
async function installTools(): Promise<string | undefined> {
  const said = (file: string, ...args: string[]): Promise<string> =>
    exec(file, args).then(
      ({ stdout }) => stdout,
      () => "",
    );
  const states = await said("dpkg-query", "--show", "--showformat=${db:Status-Status}\n", ...DEBIAN_PACKAGES);
  if (states.split("\n").filter((state) => state === "installed").length < DEBIAN_PACKAGES.length) {
    if ((await said("apt-get", "--version")) === "") return "installs podman, buildah and debootstrap with apt-get";
    const apt = (...args: string[]): Promise<unknown> =>
      exec("apt-get", ["-o", "DPkg::Lock::Timeout=300", "--quiet", ...args], {
        env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
        maxBuffer: OUTPUT_BYTES,
      });
    await apt("update");
    await apt("install", "--yes", "--no-install-recommends", ...DEBIAN_PACKAGES);
  }
  if ((await said(join(COMPOSE_VENV, "bin/podman-compose"), "--help")) === "") {
    await exec("python3", ["-m", "venv", COMPOSE_VENV]);
    const python = join(COMPOSE_VENV, "bin/python");
    await exec(python, ["-m", "pip", "install", "--quiet", `podman-compose==${PODMAN_COMPOSE_VERSION}`]);
  }
  return undefined;
}

/** Archive of the root folder of an image of Node: Debian's smallest system, Node and npm from their packages. Made once. */
async function nodeRoot(image: string): Promise<string> {
  const found = /:(\d+\.\d+\.\d+)-(\w+)-slim$/.exec(image);
  if (found === null) throw new Error(`${image} is not an exact version of Node on a slim Debian`);
  const [, version, suite] = found;
  const archive = join(CACHE, `node-${version}-${suite}-npm-${NPM_VERSION}.tar`);
  if (existsSync(archive)) return archive;
  const folder = await mkdtemp(join(CACHE, "node-root-"));
  const root = join(folder, "root");
  try {
    await exec("debootstrap", ["--variant=minbase", suite!, root], { maxBuffer: OUTPUT_BYTES });
    const unpack = async (name: string, to: string, ...members: string[]): Promise<void> => {
      const { stdout } = await exec("npm", ["pack", "--silent", "--pack-destination", folder, name]);
      await mkdir(to, { recursive: true });
      const file = join(folder, stdout.trim().split("\n").at(-1)!);
      await exec("tar", ["--extract", "--file", file, "--directory", to, "--strip-components=1", ...members]);
    };
    await unpack(`node-linux-${process.arch}@${version}`, join(root, "usr/local"), "package/bin/node");
    await unpack(`npm@${NPM_VERSION}`, join(root, "usr/local/lib/node_modules/npm"));
    const npm = ["npm", "npx"].map((name) => `ln -s ../lib/node_modules/npm/bin/${name}-cli.js /usr/local/bin/${name}`);
    await exec("chroot", [
      root,
      "/bin/sh",
      "-ec",
      [...npm, "useradd --uid 1000 --create-home node", "apt-get clean", "rm -rf /var/lib/apt/lists/*"].join("; "),
    ]);
    // Written aside and moved, so that a run which is cut short leaves none.
    const part = join(folder, "root.tar");
    await exec("tar", ["--create", "--file", part, "--directory", root, "."]);
    await rename(part, archive);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  return archive;
}

/** Lets `npm ci` inside a build reach the registry that this machine is set up for. None of it stays in the image. */
async function npmFlags(folder: string): Promise<string[]> {
  const effective = JSON.parse((await exec("npm", ["config", "list", "--json"])).stdout) as Record<string, unknown>;
  const lines: string[] = [];
  // npm shows no secrets: they are read where they lie.
  for (const file of [effective["globalconfig"], effective["userconfig"]])
    if (typeof file === "string" && existsSync(file)) lines.push(await readFile(file, "utf8"));
  for (const key of ["registry", "proxy", "https-proxy", "noproxy", "strict-ssl"]) {
    const value = String(effective[key] ?? "");
    if (value !== "") lines.push(`${key}=${value}`);
  }
  const authorities = effective["cafile"] ?? process.env["NODE_EXTRA_CA_CERTS"];
  const mounts: string[] = [];
  if (typeof authorities === "string" && existsSync(authorities)) {
    lines.push("cafile=/tmp/authorities.pem");
    mounts.push("--volume", `${authorities}:/tmp/authorities.pem:ro`);
  }
  const npmrc = join(folder, "npmrc");
  await writeFile(npmrc, lines.join("\n"));
  await chmod(npmrc, 0o600);
  return ["--secret", `id=npmrc,src=${npmrc}`, ...mounts];
}
