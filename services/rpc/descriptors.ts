// The proto files of this package as descriptors with source comments: gen/descriptors.binpb, from `buf build`.
import { readFile } from "node:fs/promises";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { createFileRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import { packageFile } from "../common/package-file.ts";

export interface DescriptorIndex {
  /** Name of the proto file that declares a full symbol name, such as `tandem.decode.v1.DecodeService`. */
  fileOf(symbol: string): string | undefined;
  /** A file and all its direct and indirect imports, as encoded FileDescriptorProtos. */
  withImports(file: string): Uint8Array[] | undefined;
}

/** @throws If this package was built without descriptors. */
export async function readDescriptors(): Promise<DescriptorIndex> {
  const path = packageFile("gen/descriptors.binpb");
  if (path === undefined) throw new Error("gen/descriptors.binpb is missing: `npm run gen` writes it");
  const set = fromBinary(FileDescriptorSetSchema, await readFile(path));
  const files = new Map<string, { bytes: Uint8Array; imports: readonly string[] }>();
  for (const file of set.file) {
    delete file.$unknown; // Buf's own metadata of the file.
    files.set(file.name, { bytes: toBinary(FileDescriptorProtoSchema, file), imports: file.dependency });
  }
  const symbols = new Map<string, string>();
  for (const type of createFileRegistry(set)) {
    const file = type.file.proto.name;
    symbols.set(type.typeName, file);
    const members =
      type.kind === "message" ? [...type.fields, ...type.oneofs] : type.kind === "service" ? type.methods : [];
    for (const { name } of members) symbols.set(`${type.typeName}.${name}`, file);
    // Values are in the scope of their enum's parent, as in C++.
    if (type.kind === "enum")
      for (const { name } of type.values) symbols.set(type.typeName.replace(/[^.]*$/, name), file);
  }

  return {
    fileOf: (symbol) => symbols.get(symbol),
    withImports(name) {
      if (!files.has(name)) return undefined;
      const wanted = new Set([name]);
      // A Set may grow during iteration; the iteration reaches the added items too.
      for (const each of wanted) for (const imported of files.get(each)?.imports ?? []) wanted.add(imported);
      return [...wanted].flatMap((each) => files.get(each)?.bytes ?? []);
    },
  };
}
