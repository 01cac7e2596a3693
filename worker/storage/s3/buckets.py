"""The real buckets of S3. What the SDK raises here, the caller translates."""

from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from worker.storage.cloud.error_mapping import Origin
from worker.storage.errors import StorageError
from worker.storage.s3.errors import code_of, is_missing, translated

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def exists(client: "S3Client", real: str) -> bool:
    """Return whether there is such a bucket."""
    try:
        client.head_bucket(Bucket=real)
    except ClientError as error:
        if not is_missing(error):
            raise
        return False
    return True


def make(client: "S3Client", real: str, *, elsewhere: bool) -> bool:
    """Make a bucket, or return False where it is ours already. `elsewhere`: Amazon wants to be told the region."""
    region = client.meta.region_name
    named: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=real, **(named if elsewhere and region not in {"us-east-1", "aws-global"} else {}))
    except ClientError as error:
        if code_of(error) != "BucketAlreadyOwnedByYou":
            raise
        return False
    return True


def delete(client: "S3Client", real: str) -> bool:
    """Delete an empty bucket, or return False where there is none."""
    try:
        client.delete_bucket(Bucket=real)
    except ClientError as error:
        if not is_missing(error):
            raise
        return False
    return True


def keeps_open_uploads(client: "S3Client", origin: Origin, real: str) -> bool:
    """Return whether the bucket is known to have no rule of its own that ends multipart uploads."""
    try:
        with translated(origin, real):
            answer: Any = client.get_bucket_lifecycle_configuration(Bucket=real)
    except StorageError as error:  # many compatible stores have no such thing, and many credentials may not look
        return code_of(error.__cause__) == "NoSuchLifecycleConfiguration"
    if "Rules" not in answer:  # others answer this question as if it were another one
        return False
    rules = answer["Rules"]
    return not any("AbortIncompleteMultipartUpload" in rule and rule["Status"] == "Enabled" for rule in rules)
