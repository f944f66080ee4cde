"""The `openai` package for workflows: change the import, and model calls survive what their providers do.

    from onward.openai import AsyncOpenAI

Inside a run each call is an instance like a component's: traced, retried, remembered, and what streams is shown. All
else is the package's own, and its names are here too.
"""

from openai import DEFAULT_CONNECTION_LIMITS as DEFAULT_CONNECTION_LIMITS
from openai import DEFAULT_MAX_RETRIES as DEFAULT_MAX_RETRIES
from openai import DEFAULT_TIMEOUT as DEFAULT_TIMEOUT
from openai import NOT_GIVEN as NOT_GIVEN
from openai import APIConnectionError as APIConnectionError
from openai import APIError as APIError
from openai import APIResponseValidationError as APIResponseValidationError
from openai import APIStatusError as APIStatusError
from openai import APITimeoutError as APITimeoutError
from openai import AsyncStream as AsyncStream
from openai import AuthenticationError as AuthenticationError
from openai import BadRequestError as BadRequestError
from openai import BaseModel as BaseModel
from openai import ConflictError as ConflictError
from openai import ContentFilterFinishReasonError as ContentFilterFinishReasonError
from openai import DefaultAioHttpClient as DefaultAioHttpClient
from openai import DefaultAsyncHttpxClient as DefaultAsyncHttpxClient
from openai import DefaultHttpxClient as DefaultHttpxClient
from openai import InternalServerError as InternalServerError
from openai import LengthFinishReasonError as LengthFinishReasonError
from openai import NotFoundError as NotFoundError
from openai import NotGiven as NotGiven
from openai import Omit as Omit
from openai import OpenAIError as OpenAIError
from openai import PermissionDeniedError as PermissionDeniedError
from openai import RateLimitError as RateLimitError
from openai import RequestOptions as RequestOptions
from openai import Stream as Stream
from openai import Timeout as Timeout
from openai import UnprocessableEntityError as UnprocessableEntityError
from openai import file_from_path as file_from_path
from openai import not_given as not_given
from openai import omit as omit
from openai import pydantic_function_tool as pydantic_function_tool
from openai import types as types

from onward.openai.budgets import Budget as Budget
from onward.openai.clients import AsyncOpenAI as AsyncOpenAI
from onward.openai.clients import OpenAI as OpenAI
from onward.openai.policy import ModelPolicy as ModelPolicy
from onward.openai.policy import Stall as Stall
from onward.openai.providers import Provider as Provider
from onward.openai.providers import Providers as Providers

Client = OpenAI
AsyncClient = AsyncOpenAI
