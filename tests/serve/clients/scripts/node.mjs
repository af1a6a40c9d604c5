// openai-node and the AI SDK: their vectors, and what becomes of errors.

import { createRequire } from "node:module";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany } from "ai";
import OpenAI from "openai";

const [url, model, absent, texts] = process.argv.slice(2);
const inputs = JSON.parse(texts);
const versionOf = (name) => {
  // Not every package lets its package.json be imported.
  const paths = createRequire(import.meta.url).resolve.paths(name);
  for (const path of paths) {
    try {
      return createRequire(import.meta.url)(`${path}/${name}/package.json`).version;
    } catch {
      continue;
    }
  }
};

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-any" });
const rows = (answer) => answer.data.map((item) => Array.from(item.embedding));

const errorOf = async (fields, apiKey = "sk-any") => {
  const tries = [];
  const counting = async (...request) => {
    const answer = await fetch(...request);
    tries.push(answer.status);
    return answer;
  };
  try {
    const own = new OpenAI({ baseURL: `${url}/v1`, apiKey, fetch: counting });
    await own.embeddings.create({ model, ...fields });
  } catch (error) {
    const { status, code, param, message } = error;
    return { class: error.constructor.name, status, code, param, says: message, tries };
  }
  return {};
};

const provider = createOpenAICompatible({
  name: "server",
  baseURL: `${url}/v1/`,
  apiKey: "sk-any",
});
const byAiSdk = await embedMany({ model: provider.textEmbeddingModel(model), values: inputs });
let aiSdkError = "";
try {
  const unknown = provider.textEmbeddingModel("no/such");
  await embedMany({ model: unknown, values: inputs, maxRetries: 0 });
} catch (error) {
  aiSdkError = error.message;
}

console.log(
  JSON.stringify({
    version: `openai ${versionOf("openai")}, @ai-sdk/openai-compatible ${versionOf("@ai-sdk/openai-compatible")}`,
    vectors: {
      default: rows(await client.embeddings.create({ model, input: inputs })),
      float: rows(await client.embeddings.create({ model, input: inputs, encoding_format: "float" })),
      "ai sdk": byAiSdk.embeddings,
    },
    errors: {
      empty: await errorOf({ input: "" }),
      "empty item": await errorOf({ input: ["a", ""] }),
      dimensions: await errorOf({ input: "a", dimensions: 100000 }),
      "unknown model": await errorOf({ input: "a", model: "no/such" }),
      "too many": await errorOf({ input: Array(2049).fill("a") }),
      "too long": await errorOf({ input: ["a", "word ".repeat(9000)] }),
      "no embedding model": await errorOf({ input: "a", model: "reranker" }),
      "wrong key": await errorOf({ input: "a" }, "sk-other"),
      "no replica": await errorOf({ input: "a", model: absent }),
    },
    ai_sdk_error: aiSdkError,
  }),
);
