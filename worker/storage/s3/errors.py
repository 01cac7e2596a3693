"""Translate the errors of the SDK and of S3 into ours; only this module knows S3's error codes.

A reason never quotes an error of the credentials or the signature: those may carry key ids, signed strings and the
output of credential programs. What else a store says is quoted in one line, cut short.
"""

import re
from collections.abc import Mapping
from typing import Any

import botocore.exceptions as sdk
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError, ReadTimeoutError

from worker.storage.cloud.error_mapping import (
    DAMAGED,
    QUOTE,
    ClassRow,
    CodeRow,
    Origin,
    by_class,
    by_code,
    code_table,
    host_of,
    missing_bucket,
    translator,
)
from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    Archived,
    Conflict,
    InvalidKey,
    InvalidMetadata,
    NotFound,
    OutOfSpace,
    PermanentError,
    PreconditionFailed,
    SizeMismatch,
    StorageError,
    Throttled,
    Timeout,
    Unavailable,
    UploadEnded,
)

SDK_ERRORS = (sdk.ClientError, sdk.BotoCoreError, ResponseParserError, HTTPError)
"""Everything that a call of the SDK, or reading a body, can raise on account of the store."""

TRUST = "AWS_CA_BUNDLE"
"""The environment variable that names the certificates of authorities for the SDK."""
_KEYS = "correct the store's keys, or what the SDK's chain finds"
_RIGHTS = f"the credentials do not allow it, or are wrong; grant the right, or {_KEYS}"
_REGION = "correct `region` or `endpoint`"
_IN_ANOTHER_PLACE = (
    "PermanentRedirect Redirect IllegalLocationConstraintException InvalidLocationConstraint InvalidRegionName "
    "301 302 303 307 308"
)
_FOR_ANOTHER_REGION = "AuthorizationHeaderMalformed"
_NAMING_A_PLACE = {*_IN_ANOTHER_PLACE.split(), _FOR_ANOTHER_REGION}
"""The codes and statuses of answers that say where the bucket is."""
_REGION_NAME = re.compile(r"[a-z0-9-]{1,40}")

_CODES: tuple[CodeRow, ...] = (
    (NotFound, QUOTE, "NoSuchKey NoSuchBucket NoSuchVersion NotFound 404"),
    (PreconditionFailed, QUOTE, "PreconditionFailed ConditionalRequestConflict 412"),
    (AlreadyExists, "the name of the bucket is taken, perhaps by another account", "BucketAlreadyExists"),
    (AlreadyExists, QUOTE, "BucketAlreadyOwnedByYou"),
    (InvalidKey, QUOTE, "KeyTooLongError InvalidBucketName InvalidURI InvalidObjectName XMinioInvalidObjectName"),
    (InvalidKey, "the key and a longer one below it cannot both be there", "XMinioObjectExistsAsDirectory"),
    (InvalidKey, "the key and a shorter one above it cannot both be there", "XMinioParentIsObject"),
    (
        Throttled,
        "the store asks for fewer requests",
        """SlowDown SlowDownRead SlowDownWrite ServiceUnavailable Held RequestLimitExceeded RequestThrottled
        RequestThrottledException Throttling ThrottlingException ThrottledException TooManyRequests
        TooManyRequestsException KMS.ThrottlingException BandwidthLimitExceeded PriorRequestNotComplete 429 503""",
    ),
    (Timeout, QUOTE, "RequestTimeout RequestTimeoutException GatewayTimeout 408 504"),
    (Unavailable, QUOTE, "InternalError InternalFailure TemporaryRedirect"),
    (Conflict, QUOTE, "OperationAborted"),
    (Unavailable, "the store fails, or is not one that speaks S3; check `endpoint`", "500 502"),
    (UploadEnded, "the multipart upload is not open any more; a new one begins", "NoSuchUpload"),
    (
        UploadEnded,
        "the multipart upload has lost parts, or holds others; a new one begins",
        "InvalidPart InvalidPartOrder EntityTooSmall",
    ),
    (
        Unavailable,
        DAMAGED,
        # Garage says InvalidDigest where Amazon says BadDigest.
        "BadDigest InvalidDigest XAmzContentSHA256Mismatch XAmzContentChecksumMismatch IncompleteBody",
    ),
    (
        OutOfSpace,
        "the store is full, or its quota is used up",
        """QuotaExceeded ServiceQuotaExceeded StorageQuotaExceeded InsufficientCapacity InsufficientStorage StorageFull
        XMinioStorageFull XMinioAdminBucketQuotaExceeded 507""",
    ),
    (SizeMismatch, "the object is larger than the store allows", "EntityTooLarge"),
    (
        AccessDenied,
        f"the credentials are wrong; {_KEYS}",
        """InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidSecurity InvalidClientTokenId
        CredentialsNotSupported MissingSecurityHeader MissingAuthenticationToken 401""",
    ),
    (
        AccessDenied,
        f"the credentials have expired; {_KEYS}",
        "ExpiredToken ExpiredTokenException TokenRefreshRequired RequestExpired",
    ),
    (
        AccessDenied,
        _RIGHTS,
        """AccessDenied AllAccessDisabled AccountProblem NotSignedUp InvalidPayer UnauthorizedAccess
        UnauthorizedAccessError AccessForbidden""",
    ),
    (
        AccessDenied,  # without a body: the answer to HEAD
        f"{_RIGHTS}; without the right `s3:ListBucket`, also if it is not there",
        "403",
    ),
    (AccessDenied, f"the store does not accept the signature; {_REGION}", _FOR_ANOTHER_REGION),
    (AccessDenied, "this machine's clock is wrong; set it", "RequestTimeTooSkewed"),
    (PermanentError, f"the bucket is elsewhere; {_REGION}", _IN_ANOTHER_PLACE),
    (PermanentError, "the store cannot do this; check `provider`", "NotImplemented MethodNotAllowed 405 501"),
    (
        Archived,
        "the object is archived and has to be restored first",
        "InvalidObjectState ObjectNotInActiveTierError",
    ),
    (
        PermanentError,
        "the object's encryption key cannot be used; enable it, or allow its use",
        """KMS.DisabledException KMS.NotFoundException KMS.KMSInvalidStateException KMS.InvalidStateException
        KMS.KeyUnavailableException KMS.InvalidKeyUsageException KMS.InvalidGrantTokenException""",
    ),
    (
        PermanentError,
        "the store does not have the storage class that was asked for; correct `storage_class`, or that of the upload",
        "InvalidStorageClass",
    ),
    (InvalidMetadata, "the metadata is larger than the store allows (S3: 2 KB)", "MetadataTooLarge"),
    # The answer to a HEAD has no body, so expired tokens and a wrong region look like this too.
    (PermanentError, "the store calls the request malformed; check `region`, `endpoint` and the keys' expiry", "400"),
    (
        PermanentError,
        QUOTE,
        """AmbiguousGrantByEmailAddress BucketNotEmpty CrossLocationLoggingProhibited InlineDataTooLarge
        IllegalVersioningConfigurationException IncorrectNumberOfFilesInPostRequest InvalidArgument
        InvalidAddressingHeader InvalidBucketState InvalidEncryptionAlgorithmError
        InvalidPolicyDocument InvalidRange InvalidRequest
        InvalidTargetBucketForLogging MalformedACLError MalformedPOSTRequest MalformedXML MaxMessageLengthExceeded
        MaxPostPreDataLengthExceededError MissingContentLength MissingRequestBodyError NoLoggingStatusForKey
        NoSuchBucketPolicy NoSuchLifecycleConfiguration RequestIsNotMultiPartContent RequestTorrentOfBucketError
        RestoreAlreadyInProgress TooManyBuckets TooManyConfigurations UnexpectedContent
        UnresolvableGrantByEmailAddress UserKeyMustBeSpecified AnnotationLimitExceeded AnnotationNameTooLong
        EncryptionTypeMismatch IdempotencyParameterMismatch InvalidAnnotationName InvalidPrefix InvalidWriteOffset
        NoSuchAnnotation ObjectAlreadyInActiveTierError TooManyParts UnsupportedMediaType 416""",
    ),
)
CODES = code_table(_CODES)

# fmt: off
# The first row with a class that the error is an instance of decides, so narrower classes come before wider ones.
CLASSES: tuple[ClassRow, ...] = (
    (Timeout, "did not answer in time", (sdk.ReadTimeoutError, ReadTimeoutError)),
    (Timeout, "did not take the connection in time; check `endpoint` and the network", (sdk.ConnectTimeoutError,)),
    (Unavailable, "TLS failed; check `endpoint` and its certificate", (sdk.SSLError,)),
    (Unavailable, "cannot be reached; check `endpoint` and the network", (sdk.ConnectionError,)),
    (
        Unavailable,
        "broke off in the middle",
        (sdk.ResponseStreamingError, sdk.IncompleteReadError, sdk.ConnectionClosedError, sdk.EventStreamError,
         sdk.UnseekableStreamError, sdk.HTTPClientError, HTTPError),
    ),
    (Unavailable, DAMAGED, (sdk.FlexibleChecksumError, sdk.ChecksumError, sdk.AwsChunkedWrapperError)),
    (Unavailable, "does not answer like S3; check `endpoint`", (ResponseParserError, sdk.PaginationError)),
    (Unavailable, "the service that hands out credentials cannot be reached", (sdk.MetadataRetrievalError,)),
    (Throttled, "the SDK holds requests back after too many errors", (sdk.CapacityNotAvailableError,)),
    (AccessDenied, "the SDK knows no such profile; correct `profile`", (sdk.ProfileNotFound,)),
    (
        AccessDenied,
        f"there are no usable credentials; {_KEYS}",
        (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.CredentialRetrievalError, sdk.NoAuthTokenError,
         sdk.UnknownCredentialError, sdk.UnknownTokenProviderError, sdk.TokenRetrievalError,
         sdk.RefreshWithMFAUnsupportedError, sdk.LoginError, sdk.SSOError),
    ),
    (InvalidKey, "the bucket's name cannot be part of a host name; set `addressing: path`", (sdk.InvalidDNSNameError,)),
    (
        PermanentError,
        "the SDK refuses the request",
        (sdk.ParamValidationError, sdk.ValidationError, sdk.MissingParametersError, sdk.OperationNotPageableError,
         sdk.UnknownClientMethodError, sdk.WaiterError, sdk.WaiterConfigError, sdk.StubResponseError,
         sdk.UndefinedModelAttributeError, sdk.InvalidExpressionError, sdk.InvalidHostLabelError,
         sdk.MD5UnavailableError, sdk.UnsupportedOutpostResourceError, sdk.UnsupportedS3ArnError,
         sdk.UnsupportedS3AccesspointConfigurationError, sdk.UnsupportedS3ConfigurationError,
         sdk.UnsupportedS3ControlArnError, sdk.UnsupportedS3ControlConfigurationError,
         sdk.UnsupportedServiceProtocolsError),
    ),
    (
        PermanentError,
        "the SDK refuses the configuration",
        (sdk.ApiVersionNotFoundError, sdk.BaseEndpointResolverError, sdk.ConfigNotFound, sdk.ConfigParseError,
         sdk.DataNotFoundError, sdk.EndpointProviderError, sdk.InvalidChecksumConfigError, sdk.InvalidConfigError,
         sdk.InvalidDefaultsMode, sdk.InvalidEndpointConfigurationError, sdk.InvalidIMDSEndpointError,
         sdk.InvalidEndpointDiscoveryConfigurationError, sdk.InvalidIMDSEndpointModeError,
         sdk.InvalidProxiesConfigError, sdk.InvalidRetryConfigurationError, sdk.InvalidS3AddressingStyleError,
         sdk.InvalidS3UsEast1RegionalEndpointConfigError, sdk.InvalidSTSRegionalEndpointsConfigError,
         sdk.MissingDependencyException, sdk.ServiceNotInRegionError, sdk.UnknownRegionError,
         sdk.UnknownServiceStyle, sdk.UnknownSignatureVersionError, sdk.UnsupportedSignatureVersionError),
    ),
)
# fmt: on


def translate(error: Exception, origin: Origin, what: str) -> StorageError:
    """Return our error for what the SDK raised; what is none of SDK_ERRORS is an UnexpectedAnswer."""
    if isinstance(error, sdk.ClientError):
        return _translate_answer(error, origin, what)
    return by_class(error, CLASSES, origin, what, trust=TRUST)


translated = translator(SDK_ERRORS, translate)
"""Raise our errors in place of the SDK's."""


def code_of(error: BaseException | None) -> str:
    """Return the store's error code, or the HTTP status where the answer had no body; empty if there was no answer."""
    return str(_details(error).get("Code", "")) if isinstance(error, sdk.ClientError) else ""


def is_missing(error: Exception) -> bool:
    """Return whether the store answers that something does not exist, without its name (HEAD has no body)."""
    return code_of(error) in {"404", "NoSuchKey", "NotFound", "NoSuchBucket"}


def was_repeated(error: sdk.ClientError) -> bool:
    """Return whether the answer is to a request that the SDK had sent before, and that may have been carried out."""
    return int(_metadata(error).get("RetryAttempts", 0)) > 0


def _translate_answer(error: sdk.ClientError, origin: Origin, what: str) -> StorageError:
    code, said = code_of(error), str(_details(error).get("Message", ""))
    if code == "NoSuchBucket":
        return missing_bucket(origin, what.partition("/")[0])
    if code == "InvalidArgument" and "object name" in said.lower():  # rclone has no code for it
        code = "InvalidObjectName"
    if code == "AccessDenied" and error.operation_name == "GetObject":
        code = "403"
    headers = _metadata(error).get("HTTPHeaders", {})
    status = str(_metadata(error).get("HTTPStatusCode", ""))
    names_place = (code if code in CODES else status) in _NAMING_A_PLACE
    elsewhere = _place_of_bucket(error, headers) if names_place else ""
    return by_code(origin, what, CODES, code=code, status=status, said=said, headers=headers, elsewhere=elsewhere)


def _place_of_bucket(error: sdk.ClientError, headers: Mapping[str, str]) -> str:
    """Return the region, or else the host, where an answer says that the bucket is; empty if it says neither."""
    region = str(headers.get("x-amz-bucket-region") or _details(error).get("Region", ""))
    if _REGION_NAME.fullmatch(region):
        return f"the region {region}"
    return host_of(str(_details(error).get("Endpoint", "")))


def _details(error: sdk.ClientError) -> Mapping[str, Any]:
    return error.response.get("Error", {})


def _metadata(error: sdk.ClientError) -> Mapping[str, Any]:
    return error.response.get("ResponseMetadata", {})
