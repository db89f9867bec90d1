import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";

import { credentials } from "@grpc/grpc-js";

import { HealthCheckRequest, HealthCheckResponse_ServingStatus, HealthClient } from "../gen/health/v1/health.js";

/** How long anything may take before a test fails, in milliseconds. */
export const patience = 60_000;

/** Starts the real server with an empty database, and returns its address. It ends with the test. */
export async function startServer(test: TestContext): Promise<string> {
  const binary = process.env["WATCHPOST_TEST_SERVER_BIN"];
  if (!binary) throw new Error("WATCHPOST_TEST_SERVER_BIN must name the server's binary");

  const data = await mkdtemp(join(tmpdir(), "watchpost-"));
  const database = `sqlite://${join(data, "watchpost.db")}`;
  const options = ["--listen", "127.0.0.1:0", "--data-dir", data, "--database-url", database];
  const server = spawn(binary, ["serve", ...options], { stdio: ["ignore", "inherit", "pipe"] });
  const ended = once(server, "exit");
  test.after(async () => {
    server.kill("SIGKILL");
    await ended;
    await rm(data, { recursive: true });
  });

  const address = await listeningAddress(createInterface(server.stderr));
  await healthy(address);
  return address;
}

/** Reads the log up to the line that tells the address, and goes on reading so that the server never waits. */
function listeningAddress(log: NodeJS.EventEmitter): Promise<string> {
  const lines: string[] = [];
  return new Promise((resolve, reject) => {
    log.on("line", (line: string) => {
      lines.push(line);
      const found = /listening on (127\.0\.0\.1:\d+)/.exec(line);
      if (found?.[1]) resolve(found[1]);
    });
    log.on("close", () => reject(new Error(`the server ended:\n${lines.join("\n")}`)));
  });
}

/** Waits until the server says that it serves. */
async function healthy(address: string): Promise<void> {
  const client = new HealthClient(address, credentials.createInsecure());
  const states = client.watch(HealthCheckRequest.fromPartial({}), { deadline: Date.now() + patience });
  try {
    for await (const state of states) {
      if (state.status === HealthCheckResponse_ServingStatus.SERVING) return;
    }
  } finally {
    client.close();
  }
}
