"""Checks values against a JSON schema: the keywords that the schema of configs uses, and no others."""

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
_LIMITS = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
}
_LENGTHS = {
    "minItems": (list, 1),
    "minLength": (str, 1),
    "maxItems": (list, -1),
    "maxLength": (str, -1),
}
_NOTES = {"$schema", "$defs", "title", "description", "default"}


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits a schema; ``root`` has the definitions."""
    return all(_fits(value, keyword, schema, root) for keyword in schema if keyword not in _NOTES)


def _fits(value: Any, keyword: str, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    rule = schema[keyword]
    if keyword == "$ref":
        return fits(value, root["$defs"][rule.removeprefix("#/$defs/")], root)
    if keyword == "anyOf":
        return any(fits(value, each, root) for each in rule)
    if keyword == "type":
        return isinstance(value, _TYPES[rule]) and (rule == "boolean" or not isinstance(value, bool))
    if keyword == "enum":
        return value in rule
    if keyword == "const":
        return bool(value == rule)
    if keyword == "pattern":
        return not isinstance(value, str) or re.search(rule, value) is not None
    if keyword in _LIMITS:
        return not isinstance(value, int | float) or _LIMITS[keyword](value, rule)
    if keyword in _LENGTHS:
        kind, sign = _LENGTHS[keyword]
        return not isinstance(value, kind) or sign * len(value) >= sign * rule
    if keyword == "prefixItems":
        return not isinstance(value, list) or all(fits(each, form, root) for each, form in zip(value, rule))
    if keyword == "items":
        return not isinstance(value, list) or all(fits(each, rule, root) for each in value)
    if keyword == "properties":
        return not isinstance(value, dict) or all(fits(value[key], rule[key], root) for key in value if key in rule)
    if keyword == "additionalProperties":
        assert rule is False
        return not isinstance(value, dict) or set(value) <= set(schema["properties"])
    raise AssertionError(f"unknown keyword {keyword}")
