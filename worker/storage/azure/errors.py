"""Translate the errors of the SDK and of Azure into ours; only this module knows Azure's error codes.

A reason never quotes an error of the credentials, nor one that the SDK made up itself: those may carry strings to sign,
the answers of token services, and URLs with a shared access signature. Other errors are quoted in one short line.
"""

from collections.abc import Mapping
from http import HTTPStatus

import azure.core.exceptions as sdk
from azure.identity import AuthenticationRequiredError, CredentialUnavailableError
from azure.storage.blob._shared.authentication import AzureSigningError  # it has no public name
from requests.exceptions import RequestException
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

SDK_ERRORS = (sdk.AzureError, sdk.SerializationError, sdk.DeserializationError, RequestException, HTTPError)
"""Everything that a call of the SDK, or reading a body, can raise on account of the store."""

TRUST = "REQUESTS_CA_BUNDLE"
"""The environment variable that names the certificates of authorities for the SDK."""
_KEYS = "correct `account_key`, `sas_token` or `connection_string`, or what DefaultAzureCredential finds"
_CONTAINER_RULE = "a container has 3 to 63 lower-case letters, digits and single '-', and begins with no '-'"
_LEASE = "another client holds a lease on it; wait for its end, or break it"
_OTHER_SERVICE = "this is no answer of a blob store; check `account_url`"

_CODES: tuple[CodeRow, ...] = (
    (NotFound, QUOTE, "BlobNotFound ContainerNotFound ResourceNotFound PathNotFound FilesystemNotFound 404"),
    (
        PreconditionFailed,
        QUOTE,
        """ConditionNotMet TargetConditionNotMet SourceConditionNotMet BlobOverwritten AppendPositionConditionNotMet
        MaxBlobSizeConditionNotMet SequenceNumberConditionNotMet 412""",
    ),
    (
        AlreadyExists,
        QUOTE,
        "BlobAlreadyExists ContainerAlreadyExists ResourceAlreadyExists PathAlreadyExists FilesystemAlreadyExists",
    ),
    (PermanentError, QUOTE, "DirectoryNotEmpty"),
    (InvalidKey, f"the store does not allow the name; {_CONTAINER_RULE}", "InvalidResourceName OutOfRangeInput"),
    (
        InvalidKey,
        "the store does not allow the name",
        """InvalidUri RequestUrlFailedToParse InvalidDestinationPath InvalidFileOrDirectoryPathName
        InvalidRenameSourcePath InvalidSourceUri ParentNotFound RenameDestinationParentPathNotFound""",
    ),
    (
        InvalidKey,
        "a folder has this name, or the key goes through a file",
        "ResourceTypeMismatch PathConflict InvalidSourceOrDestinationResourceType",
    ),
    (Throttled, "the store asks for fewer requests", "ServerBusy SnapshotOperationRateExceeded 429 503"),
    (Timeout, QUOTE, "OperationTimedOut 408 504"),
    (Unavailable, QUOTE, "InternalError"),
    (Unavailable, "the store fails, or is not one that speaks Azure; check `account_url`", "500 502"),
    (
        Unavailable,
        "it is being deleted or made; that takes a minute",
        "ContainerBeingDeleted AccountBeingCreated FilesystemBeingDeleted SystemInUse",
    ),
    (
        Conflict,
        "another program deletes it at this moment",
        "DestinationPathIsBeingDeleted SourcePathIsBeingDeleted DeletePending",
    ),
    (Conflict, "a copy to it is under way", "PendingCopyOperation"),
    (
        Conflict,
        "blocks of another program's unfinished upload are in the way; Azure drops them after a week without use",
        "InvalidBlobOrBlock",
    ),
    (
        Conflict,
        "too many blocks of unfinished uploads; end those, or Azure drops them after a week without use",
        "BlockCountExceedsLimit",
    ),
    (
        UploadEnded,
        "its blocks are not there any more, as after another write of the same key; a new upload begins",
        "InvalidBlockList",
    ),
    (Unavailable, DAMAGED, "Md5Mismatch InvalidMd5 IncompleteBody Crc64Mismatch"),
    (OutOfSpace, "the store is full, or its quota is used up", "AccountQuotaExceeded QuotaExceeded 507"),
    (
        SizeMismatch,
        "the object is larger than the store allows",
        """RequestBodyTooLarge BlockListTooLong ContentLengthLargerThanTierLimit
        BlobTierInadequateForContentLength 413""",
    ),
    (
        AccessDenied,
        f"the credentials are wrong, or this machine's clock is; {_KEYS}",
        "AuthenticationFailed AuthorizationFailure InvalidAuthenticationInfo NoAuthenticationInformation 401",
    ),
    (
        AccessDenied,
        f"the credentials do not allow it, or are wrong; grant the role, or {_KEYS}",
        """InsufficientAccountPermissions AuthorizationPermissionMismatch AuthorizationProtocolMismatch
        AuthorizationResourceTypeMismatch AuthorizationServiceMismatch UnauthorizedBlobOverwrite
        CannotVerifyCopySource CopyAcrossAccountsNotSupported 403""",
    ),
    (
        AccessDenied,
        "the store's firewall does not let this machine in; add its address",
        "AuthorizationSourceIPMismatch",
    ),
    (
        AccessDenied,
        "the account refuses shared keys; use a managed or workload identity",
        "KeyBasedAuthenticationNotPermitted",
    ),
    (AccessDenied, "the account is disabled; enable it in its subscription", "AccountIsDisabled ContainerDisabled"),
    (
        AccessDenied,
        "a retention policy or a legal hold protects it; wait for its end, or lift it",
        "BlobImmutableDueToPolicy",
    ),
    (PermanentError, _LEASE, "LeaseIdMissing LeaseAlreadyPresent LeaseIdMismatchWithBlobOperation LeaseLost"),
    (PermanentError, "it has snapshots, which would be deleted with it; delete those first", "SnapshotsPresent"),
    (
        Archived,
        "the object is archived and has to be rehydrated first",
        "BlobArchived BlobBeingRehydrated",
    ),
    (InvalidMetadata, "the metadata is larger than the store allows (Azure: 8 KB)", "MetadataTooLarge"),
    (PermanentError, "the store does not know this `api_version`", "UnsupportedRestVersion FeatureVersionMismatch"),
    (
        PermanentError,
        "the account does not know this `access_tier`",
        "BlobAccessTierNotSupportedForAccountType InvalidBlobTier CannotChangeToLowerTier",
    ),
    (PermanentError, "the store cannot do this", "UnsupportedHttpVerb InvalidHttpVerb 405 501"),
    (PermanentError, "the store is elsewhere; correct `account_url`", "301 302 303 307 308"),
    (
        PermanentError,
        QUOTE,
        """400 409 416 BlobNotArchived ConditionHeadersNotSupported ContentLengthMustBeZero CopyIdMismatch
        EmptyMetadataKey IncrementalCopyBlobMismatch IncrementalCopyOfEarlierSnapshotNotAllowed
        IncrementalCopyOfEarlierVersionSnapshotNotAllowed IncrementalCopySourceMustBeSnapshot
        InfiniteLeaseDurationRequired InvalidBlobType InvalidBlockId InvalidFlushPosition InvalidHeaderValue
        InvalidInput InvalidMetadata InvalidOperation InvalidPageRange InvalidPropertyName InvalidQueryParameterValue
        InvalidRange InvalidSourceBlobType InvalidSourceBlobUrl InvalidVersionForPageBlobOperation InvalidXmlDocument
        InvalidXmlNodeValue LeaseAlreadyBroken LeaseIdMismatchWithContainerOperation
        LeaseIdMismatchWithLeaseOperation LeaseIsAlreadyBroken LeaseIsBreakingAndCannotBeAcquired
        LeaseIsBreakingAndCannotBeChanged LeaseIsBrokenAndCannotBeRenewed LeaseNameMismatch
        LeaseNotPresentWithBlobOperation LeaseNotPresentWithContainerOperation LeaseNotPresentWithLeaseOperation
        MissingContentLengthHeader MissingRequiredHeader MissingRequiredQueryParameter MissingRequiredXmlNode
        MultipleConditionHeadersNotSupported NoPendingCopyOperation OperationNotAllowedOnIncrementalCopyBlob
        OutOfRangeQueryParameterValue PreviousSnapshotCannotBeNewer PreviousSnapshotNotFound
        PreviousSnapshotOperationNotSupported SequenceNumberIncrementTooLarge SnapshotCountExceeded
        SourcePathNotFound UnsupportedHeader UnsupportedQueryParameter UnsupportedXmlNode""",
    ),
    # Codes that the SDK shares with queues, tables and file shares: a blob store never returns them.
    (
        PermanentError,
        _OTHER_SERVICE,
        """AccountAlreadyExists CannotDeleteFileOrDirectory ClientCacheFlushDelay ContainerQuotaDowngradeNotAllowed
        FileLockConflict FileShareProvisionedBandwidthDowngradeNotAllowed FileShareProvisionedBandwidthInvalid
        FileShareProvisionedIopsDowngradeNotAllowed FileShareProvisionedIopsInvalid
        FileShareProvisionedStorageInvalid InvalidMarker MessageNotFound MessageTooLarge PopReceiptMismatch
        QueueAlreadyExists QueueBeingDeleted QueueDisabled QueueNotEmpty QueueNotFound ReadOnlyAttribute
        ShareAlreadyExists ShareBeingDeleted ShareDisabled ShareHasSnapshots ShareNotFound
        ShareSnapshotCountExceeded ShareSnapshotInProgress ShareSnapshotNotFound ShareSnapshotOperationNotSupported
        SharingViolation TotalSharesCountExceedsAccountLimit TotalSharesProvisionedBandwidthExceedsAccountLimit
        TotalSharesProvisionedCapacityExceedsAccountLimit TotalSharesProvisionedIopsExceedsAccountLimit""",
    ),
)
CODES = code_table(_CODES)

# fmt: off
# The first row with a class that the error is an instance of decides, so narrower classes come before wider ones.
# Answers with a status never come here, but the SDK raises some of their classes without one, when a body breaks off.
CLASSES: tuple[ClassRow, ...] = (
    (Timeout, "did not take the connection in time; check `account_url` and the network",
     (sdk.ServiceRequestTimeoutError,)),
    (Timeout, "did not answer in time", (sdk.ServiceResponseTimeoutError, ReadTimeoutError)),
    (Unavailable, "cannot be reached; check `account_url` and the network", (sdk.ServiceRequestError,)),
    (AccessDenied, f"there are no usable credentials; {_KEYS}",
     (AuthenticationRequiredError, CredentialUnavailableError)),
    (AccessDenied, "the account key is no key; correct `account_key`", (AzureSigningError,)),
    (AccessDenied, f"the credentials are wrong; {_KEYS}", (sdk.ClientAuthenticationError,)),
    (
        PermanentError,
        "the SDK refuses the request",
        (sdk.TooManyRedirectsError, sdk.StreamConsumedError, sdk.StreamClosedError, sdk.ResponseNotReadError,
         sdk.SerializationError),
    ),
    (
        Unavailable,
        "broke off in the middle",
        (sdk.IncompleteReadError, sdk.ServiceResponseError, RequestException, HTTPError),
    ),
    (Unavailable, "does not answer like Azure; check `account_url`", (sdk.DecodeError, sdk.DeserializationError)),
    (
        Unavailable,
        "broke off in the middle, or does not answer like Azure",
        (sdk.ODataV4Error, sdk.ResourceExistsError, sdk.ResourceNotFoundError, sdk.ResourceModifiedError,
         sdk.ResourceNotModifiedError, sdk.HttpResponseError),
    ),
)
# fmt: on


def translate(error: Exception, origin: Origin, what: str) -> StorageError:
    """Return our error for what the SDK raised; what is none of SDK_ERRORS is an UnexpectedAnswer."""
    if isinstance(error, sdk.HttpResponseError) and (error.status_code or 0) >= HTTPStatus.MULTIPLE_CHOICES:
        return _translate_answer(error, origin, what)
    return by_class(error, CLASSES, origin, what, trust=TRUST)


translated = translator(SDK_ERRORS, translate)
"""Raise our errors in place of the SDK's."""


def code_of(error: BaseException) -> str:
    """Return the store's error code, or the HTTP status where it gave none; empty if there was no answer."""
    if not isinstance(error, sdk.HttpResponseError) or not error.status_code:
        return ""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or error.status_code)


def _translate_answer(error: sdk.HttpResponseError, origin: Origin, what: str) -> StorageError:
    code = code_of(error)
    if code == "ContainerNotFound":
        return missing_bucket(origin, what.partition("/")[0])
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    return by_code(
        origin,
        what,
        CODES,
        code=code,
        status=str(error.status_code),
        said=_said(error),
        headers=headers,
    )


def _said(error: sdk.HttpResponseError) -> str:
    """Return the first line of what the store says: the others name the request, its parameters and its time."""
    lines = str(error.message).strip().splitlines()
    said = lines[0] if lines else ""
    return "" if "sig=" in said.lower() else said
