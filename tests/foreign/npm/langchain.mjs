// LangChain.js, over chats and over Responses.

import { ChatOpenAI } from "@langchain/openai";
import { createAgent, tool } from "langchain";
import { z } from "zod";
import { getWeather, report } from "./asked.mjs";

const Person = z.object({ name: z.enum(["Ada", "Grace"]), is_alive: z.boolean() });
const weather = tool(getWeather, {
  name: "get_weather",
  schema: z.object({ city: z.string() }),
});

class Api {
  constructor(useResponsesApi) {
    this.useResponsesApi = useResponsesApi;
  }

  model({ url, key, model, headers, retries }, fields = {}) {
    const configuration = { baseURL: `${url}/v1`, defaultHeaders: headers };
    const { useResponsesApi } = this;
    const given = { model, apiKey: key, maxRetries: retries, configuration, useResponsesApi };
    return new ChatOpenAI({ ...given, ...fields });
  }

  async ask(server, turns) {
    const { text, usage_metadata: used } = await this.model(server).invoke(turns);
    return { text, usage: [used.input_tokens, used.output_tokens] };
  }

  async *stream(server, turns) {
    const chunks = await this.model(server, { temperature: 0 }).stream(turns);
    for await (const chunk of chunks) yield chunk.text;
  }

  async useTool(server, turns) {
    const agent = createAgent({ model: this.model(server), tools: [weather], name: "clerk" });
    return (await agent.invoke({ messages: turns })).messages.at(-1).text;
  }

  async person(server, turns) {
    return this.model(server).withStructuredOutput(Person).invoke(turns);
  }
}

await report({ chat: new Api(false), responses: new Api(true) });
