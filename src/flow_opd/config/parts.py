"""Parts that are chosen by name: ours, those of installed packages, and any code as 'package.module:Name'.

A kind of parts is a subclass of `Part` that says which `Kind` it is. Wherever settings have a field of it, a
configuration may name a part, alone or in a section with its settings:

    objective: direct-kl
    objective: {name: my_package.objectives:Huber, delta: 0.5}

The name leads to code, and the code says which settings it has: a class by the parameters of its `__init__`,
a function by its keyword-only ones, a subclass of the kind by its fields. Naming a part imports its module,
as `import` would; nothing is fetched.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from flow_opd.config.base import Problem, Settings, named, refuse
from flow_opd.config.kinds import CODE, Kind
from flow_opd.config.signatures import fields_of
from flow_opd.errors import ConfigError

BY_NAME = "x-by-name"  # marks, while a JSON schema is made, where a word may stand for a section

AnyPart = TypeVar("AnyPart", bound="Part")


class Part(Settings):
    """Settings of a part that is chosen by its name.

    A kind of parts is a direct subclass with a `kind`; a field of that type takes any part of it. What stands
    in such a field is a further subclass: one that somebody wrote, with a method `build` as its kind has, or
    one made of a signature.
    """

    kind: ClassVar[Kind]
    code: ClassVar[Any] = None  # the class or function whose parameters these settings are
    parameters: ClassVar[tuple[str, ...]] = ()
    name: str
    """Which one this is."""

    def made(self, context: Mapping[str, Any] | None = None) -> Any:
        """Returns what the code makes of these settings, where they are its parameters.

        Args:
            context: what a run gives to a class of this kind that has such parameters.
        """
        if self.code is None:
            raise ConfigError(
                f"settings of no {self.kind.what} in particular",
                value=self.name,
                allowed=f"{type(self).__name__}.of(name, settings)",
                fix="make them so, or by the class of the part",
            )
        given = {name: copy.deepcopy(getattr(self, name)) for name in self.parameters}
        if inspect.isclass(self.code):
            wanted = inspect.signature(self.code).parameters
            from_run = {name: value for name, value in (context or {}).items() if name in wanted}
            return self.code(**given, **from_run)
        return update_wrapper(partial(self.code, **given), self.code) if given else self.code

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any] | None = None) -> Self:
        """Returns the part of this name with these settings; the others have their defaults.

        Raises:
            ConfigError: if there is none, or its code cannot be imported or has no settings.
            ValidationError: if a setting does not fit it.
        """
        return cls.chosen(name).model_validate({"name": name, **(settings or {})})

    @classmethod
    def is_kind(cls) -> bool:
        """Says whether this is a kind of parts, and no part."""
        return "kind" in vars(cls)

    @classmethod
    def of_code(cls, name: str, code: Callable[..., Any]) -> type[Self]:
        """Returns settings for a class or function of this name, by its parameters.

        Raises:
            ConfigError: if they cannot be settings.
        """
        return of_signature(cls, name, code)

    @classmethod
    def chosen(cls, name: str) -> type[Self]:
        """Returns the settings of the part of this name.

        Raises:
            ConfigError: if there is none, or its code cannot be imported or has no settings.
        """
        code = cls.kind.code(name)
        known = _MODELS.get((cls, name))
        if known is None or known[0] is not code:
            known = _MODELS[cls, name] = (code, _model(cls, name, code))
        return known[1]

    @classmethod
    def usable(cls, name: str) -> type[Self] | None:
        """Returns the settings of the part of this name, or None if an installed one does not work here."""
        try:
            return cls.chosen(name)
        except ConfigError:
            return None

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Returns the schema of a part, or, for a kind, one that chooses the part by its name."""
        if not cls.is_kind():
            return handler(source)
        written = core_schema.plain_serializer_function_ser_schema(_written, info_arg=True)
        return core_schema.with_info_plain_validator_function(cls._choose, serialization=written)

    @classmethod
    def _choose(cls, value: Any, info: core_schema.ValidationInfo) -> Part:
        """Returns the part that a value describes: a word, or a section with a name."""
        if isinstance(value, cls) and not type(value).is_kind():
            return value
        data = named(dict(value) if isinstance(value, cls) else value)
        name = _Named.model_validate(data).name
        try:
            model = cls.chosen(name)
        except ConfigError as error:
            at = () if isinstance(value, str) else ("name",)
            refuse([Problem(at, error.what, error.value, error.allowed, error.fix)])
        if info.mode == "json":  # where strictness lets a list be a tuple
            return model.model_validate_json(json.dumps(data), strict=True)
        return model.model_validate(data)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Returns the schema of a part, or, for a kind, that of all parts with a name of their own."""
        if not cls.is_kind():
            return handler(schema)
        models = dict.fromkeys(model for name in cls.kind.names() if (model := cls.usable(name)))
        members = [handler(model.__pydantic_core_schema__) for model in models]
        code = {"type": "string", "pattern": f"^{CODE}$"}
        own = {"type": "object", "properties": {"name": code}, "required": ["name"]}
        return {BY_NAME: True, "anyOf": [{"oneOf": [*members, own]}]}


class _Named(BaseModel):
    """What every section of a part has."""

    name: str


_MODELS: dict[tuple[type[Part], str], tuple[Any, type[Any]]] = {}  # (kind, name) -> code, and its settings


def _written(part: Part, info: core_schema.SerializationInfo) -> Any:
    """Returns a part as plain data: a word where it has no further settings."""
    values = part.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults)
    return part.name if set(values) <= {"name"} else {"name": part.name, **values}


def _model(kind: type[AnyPart], name: str, code: Any) -> type[AnyPart]:
    """Returns the settings of a part under its name."""
    is_settings = inspect.isclass(code) and issubclass(code, kind)
    model: Any = code if is_settings else kind.of_code(name, code)
    if is_settings and model.code is None and model.build is kind.build:  # type: ignore[attr-defined]
        raise ConfigError(
            f"settings of a {kind.kind.what} that build none",
            value=name,
            allowed="a subclass with a method 'build' of its own",
            fix="write it",
        )
    words = model.model_fields["name"].annotation
    if get_origin(words) is Literal and name in get_args(words):
        return model
    only: Any = (Literal[name], FieldInfo(default=name, description=f"Which {kind.kind.what} this is."))
    return create_model(model.__name__, __base__=model, __module__=code.__module__, name=only)


def of_signature(
    kind: type[AnyPart], name: str, code: Callable[..., Any], *, fields: bool = True
) -> type[AnyPart]:
    """Returns settings with a field for each parameter that a configuration may set, or with none.

    Raises:
        ConfigError: if one has no type, or one that no configuration can hold, or the name of another.
    """
    kind.kind.check(name, code)
    found = fields_of(kind.kind, kind, name, code) if fields else {}
    try:
        model = create_model(f"{code.__name__}Settings", __base__=kind, __module__=code.__module__, **found)
        model.model_json_schema()  # what no schema can say, no file can hold
    except PydanticUserError as fault:
        raise ConfigError(
            f"{kind.kind.what} {name!r} has a parameter of a type that no configuration can hold",
            value=str(fault).splitlines()[0],
            allowed="numbers, words, lists, and settings of these",
            fix="give it such a type, or write its settings as a subclass of "
            f"{kind.__module__}.{kind.__name__} with a method 'build'",
        ) from None
    model.__doc__ = inspect.getdoc(code)
    model.code, model.parameters = staticmethod(code), tuple(found)
    return model
