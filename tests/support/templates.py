"""Chat templates for rill: those of models that call tools and reason, and strict ones.

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


# Templates that refuse or drop turns, as those of well-known models do.

_TURNS = (
    "{%- for message in turns %}<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>"
    "{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_ALTERNATE = (
    "{%- for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}"
    "{% endif %}{% endfor %}"
)
_SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "<|system|>{{ messages[0]['content'] }}<|end|>{% else %}{% set turns = messages %}{% endif %}"
)

GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% set turns = messages %}" + _ALTERNATE + _TURNS
)
"""Refuses system turns, and turns that do not alternate. Shows results of tools and no calls."""

LLAMA = (
    _SYSTEM_FIRST
    + _ALTERNATE
    + "{%- for message in turns %}{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}" + _TURNS
)
"""Shows a first system turn; then user and assistant must alternate, without tools."""

MISTRAL = (
    _SYSTEM_FIRST + "{% set ns = namespace(index=0) %}"
    "{%- for message in turns %}"
    "{% if message['role'] in ('user', 'assistant') and not message.get('tool_calls') %}"
    "{% if (message['role'] == 'user') != (ns.index % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, roles must alternate') }}{% endif %}"
    "{% set ns.index = ns.index + 1 %}{% endif %}{% endfor %}"
    "{%- for message in turns %}<|{{ message['role'] }}|>"
    "{%- if message.get('tool_calls') %}"
    "{% for call in message['tool_calls'] %}"
    "{% if call['id'] | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}"
    "{% set called = call['function'] %}"
    "~{{ called['name'] }} {{ called['arguments'] | tojson }} {{ call['id'] }}{% endfor %}"
    "{% elif message['role'] == 'tool' %}"
    "{% if message['tool_call_id'] | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}{{ message['tool_call_id'] }} {{ message['content'] }}"
    "{% elif message['role'] in ('user', 'assistant') %}{{ message['content'] }}"
    "{% else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}"
    "{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Shows calls with ids of nine characters; other turns must alternate."""

QWEN = (
    "{% set ns = namespace(asked=false) %}"
    "{%- for message in messages %}{% if message['role'] == 'user' %}{% set ns.asked = true %}"
    "{% elif message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}"
    "{% if not ns.asked %}{{ raise_exception('No user query found in messages.') }}{% endif %}"
    + TOOLS.replace("{{ bos_token }}", "")
)
"""Shows tools; refuses late system turns and conversations without a user."""

PHI = (
    "{%- for message in messages %}{% if message['role'] == 'user' %}"
    "<|user|>{{ message['content'] }}<|end|><|assistant|>"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
)
"""Drops every turn that is neither the user's nor the assistant's."""

PICKY = (
    "{%- for message in messages %}{% if 'zqxj' in message['content'] %}"
    "{{ raise_exception('This must not be said: zqxj') }}{% endif %}{% endfor %}" + LLAMA
)
"""Refuses every conversation that contains "zqxj"; shows others like `LLAMA`."""
