// Vercel's AI SDK, with each provider that speaks one of Penstock's APIs.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { getWeather, report } from "./asked.mjs";

const Person = z.object({ name: z.enum(["Ada", "Grace"]), is_alive: z.boolean() });
const tools = {
  get_weather: tool({ inputSchema: z.object({ city: z.string() }), execute: getWeather }),
};

class Provider {
  constructor(modelOf) {
    this.modelOf = modelOf;
  }

  fields({ url, key, model, headers, retries }, turns) {
    const system = turns.find(({ role }) => role === "system")?.content;
    return {
      model: this.modelOf({ baseURL: `${url}/v1`, apiKey: key, headers }, model),
      instructions: system,
      messages: turns.filter(({ role }) => role !== "system"),
      maxRetries: retries,
    };
  }

  async ask(server, turns) {
    const { text, usage } = await generateText(this.fields(server, turns));
    return { text, usage: [usage.inputTokens, usage.outputTokens] };
  }

  async *stream(server, turns) {
    let failure;
    const onError = ({ error }) => (failure = error); // the text's iterator just ends
    yield* streamText({ ...this.fields(server, turns), temperature: 0, onError }).textStream;
    if (failure) throw failure;
  }

  async useTool(server, turns) {
    const stopWhen = stepCountIs(3);
    return (await generateText({ ...this.fields(server, turns), tools, stopWhen })).text;
  }

  async person(server, turns) {
    const output = Output.object({ schema: Person });
    return (await generateText({ ...this.fields(server, turns), output })).output;
  }
}

await report({
  responses: new Provider((server, model) => createOpenAI(server)(model)),
  chat: new Provider((server, model) => createOpenAI(server).chat(model)),
  compatible: new Provider((server, model) =>
    createOpenAICompatible({
      ...server,
      name: "penstock",
      includeUsage: true,
      supportsStructuredOutputs: true,
    })(model),
  ),
  messages: new Provider((server, model) => createAnthropic(server)(model)),
});
