// The proto files of this package as descriptors with source comments: gen/descriptors.binpb, from `buf build`.
import { readFile } from "node:fs/promises";
import {
  type DescriptorProto,
  type EnumDescriptorProto,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
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
  const descriptorSet = await readFile(path);
  const files = new Map<string, { bytes: Uint8Array; imports: readonly string[] }>();
  const symbols = new Map<string, string>();
  for (const file of fromBinary(FileDescriptorSetSchema, descriptorSet).file) {
    delete file.$unknown; // Buf's own metadata of the file.
    files.set(file.name, { bytes: toBinary(FileDescriptorProtoSchema, file), imports: file.dependency });
    const add = (scope: string, name: string): string => {
      const symbol = scope === "" ? name : `${scope}.${name}`;
      symbols.set(symbol, file.name);
      return symbol;
    };
    const addEnum = (scope: string, declared: EnumDescriptorProto): void => {
      add(scope, declared.name);
      for (const value of declared.value) add(scope, value.name); // Values are in the scope of their enum's parent, as in C++.
    };
    const addMessage = (scope: string, message: DescriptorProto): void => {
      const symbol = add(scope, message.name);
      for (const field of message.field) add(symbol, field.name);
      for (const oneof of message.oneofDecl) add(symbol, oneof.name);
      for (const nested of message.nestedType) addMessage(symbol, nested);
      for (const nested of message.enumType) addEnum(symbol, nested);
    };
    for (const message of file.messageType) addMessage(file.package, message);
    for (const declared of file.enumType) addEnum(file.package, declared);
    for (const service of file.service) {
      const symbol = add(file.package, service.name);
      for (const method of service.method) add(symbol, method.name);
    }
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
