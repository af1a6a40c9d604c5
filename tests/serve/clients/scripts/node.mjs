// openai-node and the AI SDK: their vectors, and what becomes of errors.

import { createRequire } from "node:module";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany } from "ai";
import OpenAI from "openai";

const [url, model, , texts] = process.argv.slice(2);
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

const errorOf = async (fields) => {
  try {
    await client.embeddings.create({ model, ...fields });
  } catch (error) {
    const { status, code, param, message } = error;
    return { class: error.constructor.name, status, code, param, says: message };
  }
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
      "unknown model": await errorOf({ input: "a", model: "no/such" }),
    },
    ai_sdk_error: aiSdkError,
  }),
);
