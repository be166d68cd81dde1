"""Lists of tools in the shape of well-known MCP servers and agents, in words of our own.

Each uses the JSON Schema features that the server's own list uses: zod's and pydantic's forms,
drafts, formats, counted patterns, recursion, maps, and unions.
"""

from typing import Any

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
TEXT: dict[str, Any] = {"type": "string", "description": "Some text."}
FLAG: dict[str, Any] = {"type": "boolean", "default": False}
UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9-]*\.)+[a-z]{2,}$"
)


def tool(name: str, properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required), **more}
    function = {"name": name, "description": f"Do {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


def zod(name: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return a tool as zod describes it."""
    return tool(name, properties, *required, additionalProperties=False, **{"$schema": DRAFT_7})


ELEMENT = {"element": TEXT, "ref": TEXT}
BROWSER = [
    zod("browser_close", {}),
    zod("browser_resize", {"width": {"type": "number"}, "height": {"type": "number"}}, "width"),
    zod("browser_click", {**ELEMENT, "doubleClick": FLAG, "button": {"enum": ["left", "right"]}}),
    zod("browser_evaluate", {"function": TEXT, **ELEMENT}, "function"),
    zod(
        "browser_fill_form",
        {
            "fields": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": TEXT, "type": {"enum": ["textbox", "slider"]}},
                    "required": ["name", "type"],
                    "additionalProperties": False,
                },
            },
            "values": {
                "type": "object",
                "propertyNames": {"type": "string", "pattern": "^[a-z]{1,20}$"},
                "additionalProperties": {"type": "string"},
            },
        },
        "fields",
    ),
    zod("browser_tabs", {"action": {"type": "string", "enum": ["list", "new"]}, "index": {}}),
    zod("browser_wait_for", {"time": {"type": "number", "exclusiveMinimum": 0}, "text": TEXT}),
    zod("browser_take_screenshot", {"filename": {**TEXT, "pattern": r"^[\w.-]{1,255}$"}}),
]

RICH_TEXT = {
    "type": "object",
    "properties": {
        "text": {
            "type": "object",
            "properties": {
                "content": {"type": "string", "maxLength": 2000},
                "link": {
                    "type": ["object", "null"],
                    "properties": {"url": {"type": "string", "format": "uri"}},
                    "required": ["url"],
                },
            },
            "required": ["content"],
            "additionalProperties": False,
        },
        "type": {"enum": ["text"]},
    },
    "required": ["text"],
}
PAGES = [
    tool(
        "API-post-page",
        {
            "parent": {
                "oneOf": [
                    {"type": "object", "properties": {"page_id": TEXT}, "required": ["page_id"]},
                    {"type": "object", "properties": {"database_id": TEXT}, "required": ["type"]},
                ]
            },
            "properties": {
                "type": "object",
                "properties": {"title": {"type": "array", "items": {"$ref": "#/$defs/rich"}}},
                "additionalProperties": {"$ref": "#/$defs/value"},
            },
            "children": {"type": "array", "items": {"$ref": "#/$defs/block"}, "maxItems": 100},
            "icon": {"type": "string", "format": "json"},
        },
        "parent",
        "properties",
        **{
            "$defs": {
                "rich": RICH_TEXT,
                "value": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
                "block": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {
                                "type": {"const": "paragraph"},
                                "children": {"type": "array", "items": {"$ref": "#/$defs/block"}},
                            },
                        },
                        {"type": "string"},
                    ]
                },
            }
        },
    ),
    tool("API-get-user", {"user_id": {**TEXT, "format": "uuid", "pattern": UUID}}, "user_id"),
    tool("API-post-search", {"filter": {"not": {"type": "null"}}, "page_size": {"default": 100}}),
    tool("notion-create-view", {"view": {"allOf": [{"type": "object"}, {"required": ["name"]}]}}),
]

FORMATS = {
    "type": "array",
    "uniqueItems": True,
    "items": {
        "anyOf": [
            {"type": "string", "enum": ["markdown", "links"]},
            {
                "type": "object",
                "properties": {
                    "type": {"type": "string", "const": "json"},
                    "schema": {
                        "type": "object",
                        "propertyNames": {"type": "string"},
                        "additionalProperties": {},
                    },
                },
                "required": ["type"],
                "additionalProperties": False,
            },
        ]
    },
}
CRAWLER = [
    zod("firecrawl_scrape", {"url": {**TEXT, "format": "uri"}, "formats": FORMATS}, "url"),
    zod("firecrawl_map", {"url": TEXT, "limit": {"type": "integer", "maximum": 2**53 - 1}}, "url"),
    zod(
        "firecrawl_search",
        {
            "query": {"type": "string", "minLength": 1},
            "sources": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "tbs": {"type": "string", "pattern": r"^qdr:[hdwmy]\d{0,3}$"},
        },
        "query",
    ),
    zod(
        "firecrawl_extract",
        {"urls": {"type": "array", "items": TEXT, "maxItems": 2000}, "schema": {"type": "object"}},
        "urls",
    ),
]

PAGE = {"page": {"type": "number", "minimum": 1}, "perPage": {"type": "number", "maximum": 100}}
REPOSITORY = {"owner": TEXT, "repo": TEXT}
FORGE = [
    *(
        tool(f"{verb}_{noun}", {**REPOSITORY, **PAGE, "number": {"type": "number"}}, "owner")
        for verb in ("list", "get", "create", "update", "search", "merge", "close", "lock")
        for noun in ("issues", "pulls", "branches", "commits", "tags", "releases", "runs", "gists")
    ),
    tool(
        "push_files",
        {
            **REPOSITORY,
            "files": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"path": TEXT, "content": TEXT},
                    "required": ["path", "content"],
                    "additionalProperties": False,
                },
            },
        },
        "files",
    ),
    tool(
        "create_pending_review",
        {
            "comments": {
                "type": ["array", "null"],
                "items": {"type": "object", "required": ["body"]},
            }
        },
    ),
]

FILES = [
    tool(
        "read_text_file", {"path": TEXT, "head": {"type": "number"}}, "path", **{"$schema": DRAFT_7}
    ),
    zod("read_multiple_files", {"paths": {"type": "array", "items": TEXT, "minItems": 1}}, "paths"),
    tool(
        "edit_file",
        {
            "path": TEXT,
            "edits": {
                "type": "array",
                "items": {"type": "object", "properties": {"oldText": TEXT, "newText": TEXT}},
            },
            "dryRun": FLAG,
        },
        "path",
        additionalProperties=False,
    ),
    zod("list_directory_with_sizes", {"path": TEXT, "sortBy": {"enum": ["name", "size"]}}, "path"),
    tool("list_allowed_directories", {}),
]

AGENT = [
    tool(
        name,
        properties,
        *required,
        additionalProperties=False,
        **{"$schema": DRAFT_2020},
    )
    for name, properties, required in (
        ("Bash", {"command": TEXT, "timeout": {"type": "number"}}, ["command"]),
        ("Edit", {"file_path": TEXT, "replace_all": FLAG}, ["file_path"]),
        ("WebFetch", {"url": {"type": "string", "format": "uri"}, "prompt": TEXT}, ["url"]),
        ("WebSearch", {"query": {"type": "string", "minLength": 2}}, ["query"]),
        (
            "TodoWrite",
            {
                "todos": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "content": {"type": "string", "minLength": 1},
                            "status": {"enum": ["pending", "completed"]},
                        },
                        "required": ["content", "status"],
                        "additionalProperties": False,
                    },
                }
            },
            ["todos"],
        ),
        (
            "AskUserQuestion",
            {
                "questions": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 4,
                    "items": {"type": "object", "properties": {"question": TEXT}},
                },
                "answers": {
                    "type": "object",
                    "propertyNames": {"type": "string"},
                    "additionalProperties": {"type": "string"},
                },
                "contact": {"type": "string", "format": "email", "pattern": EMAIL},
            },
            ["questions"],
        ),
    )
]
MANY = [tool(f"mcp__server__{'x' * 200}_{number}", {"a": TEXT}) for number in range(200)]

LISTS: dict[str, list[dict[str, Any]]] = {
    "browser": BROWSER,
    "pages": PAGES,
    "crawler": CRAWLER,
    "forge": FORGE,
    "files": FILES,
    "agent": AGENT,
    "many": MANY,
}
