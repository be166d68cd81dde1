"""Chat templates for rill that are like those of models that call tools and reason.

rill has learned neither. But llama.cpp reads from a template how the model calls tools, and forces
that form if a call is required. Otherwise a bias forces it: in these templates the token `CALL`,
which rill has, begins a call.
"""

CALL = "~"
CALL_ID = 98
"""The id of the token `CALL`."""

TOOLS = (
    "{{ bos_token }}"
    "{%- if tools %}<|system|>"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% endif %}"
    "You may call these functions:\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}"
    '\n</tools>\nAnswer with ~{"name": ..., "arguments": ...}`<|end|>'
    "{% elif messages[0]['role'] == 'system' %}<|system|>{{ messages[0]['content'] }}<|end|>"
    "{% endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' or (message['role'] == 'system' and not loop.first) %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{%- elif message['role'] == 'assistant' %}<|assistant|>"
    "{%- if message.get('reasoning_content') %}"
    "<think>\n{{ message['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{{ message['content'] or '' }}"
    "{%- for call in message.get('tool_calls') or [] %}"
    "{%- set call = call['function'] -%}"
    '~{"name": "{{ call[\'name\'] }}", "arguments": {{ call[\'arguments\'] | tojson }}}`'
    "{%- endfor %}<|end|>"
    "{%- elif message['role'] == 'tool' %}"
    "<|user|><tool_response>\n{{ message['content'] }}\n</tool_response><|end|>"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template of a model that calls tools."""

REASONING = TOOLS.replace(
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}",
    "{%- if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}",
)
"""The template of a model that calls tools, and reasons unless it is told not to."""
