from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_PROTOCOL_MISMATCH: _ClassVar[Reason]
    REASON_PAGE_SIZE_MISMATCH: _ClassVar[Reason]
    REASON_UNKNOWN_SESSION: _ClassVar[Reason]
    REASON_BAD_NAME: _ClassVar[Reason]
    REASON_NOT_A_SEGMENT: _ClassVar[Reason]
    REASON_BAD_SIZE: _ClassVar[Reason]
    REASON_WRONG_OWNER: _ClassVar[Reason]
    REASON_LEASE_NOT_HELD: _ClassVar[Reason]
    REASON_LIMIT: _ClassVar[Reason]
    REASON_PROTOCOL_VIOLATION: _ClassVar[Reason]
    REASON_BAD_TOKEN: _ClassVar[Reason]
    REASON_BAD_CONFIG: _ClassVar[Reason]
    REASON_SHUTTING_DOWN: _ClassVar[Reason]
    REASON_SEGMENT_IN_USE: _ClassVar[Reason]
    REASON_INTERNAL: _ClassVar[Reason]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_UFFD: _ClassVar[Tier]
    TIER_USER: _ClassVar[Tier]
    TIER_OFF: _ClassVar[Tier]

class Tracker(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRACKER_UNSPECIFIED: _ClassVar[Tracker]
    TRACKER_CHECKSUM: _ClassVar[Tracker]
    TRACKER_PAGEMAP: _ClassVar[Tracker]

class Backing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKING_UNSPECIFIED: _ClassVar[Backing]
    BACKING_SHM: _ClassVar[Backing]
    BACKING_MEMFD: _ClassVar[Backing]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_MERGED: _ClassVar[EventKind]
    EVENT_KIND_DECLINED: _ClassVar[EventKind]
    EVENT_KIND_COPIED: _ClassVar[EventKind]
    EVENT_KIND_RELEASED: _ClassVar[EventKind]
    EVENT_KIND_NOT_ADOPTED: _ClassVar[EventKind]
    EVENT_KIND_EXCLUDED: _ClassVar[EventKind]
    EVENT_KIND_INCLUDED: _ClassVar[EventKind]
    EVENT_KIND_WRITTEN: _ClassVar[EventKind]
    EVENT_KIND_RESUMED: _ClassVar[EventKind]

class ReleasedDetail(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELEASED_DETAIL_ADOPTED: _ClassVar[ReleasedDetail]
    RELEASED_DETAIL_DISCARDED: _ClassVar[ReleasedDetail]

class WrittenDetail(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WRITTEN_DETAIL_WRITTEN: _ClassVar[WrittenDetail]
    WRITTEN_DETAIL_POSSIBLY: _ClassVar[WrittenDetail]
    WRITTEN_DETAIL_GIVEN_BACK: _ClassVar[WrittenDetail]

class DeclineReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECLINE_REASON_UNSPECIFIED: _ClassVar[DeclineReason]
    DECLINE_REASON_CHANGED: _ClassVar[DeclineReason]
    DECLINE_REASON_BUDGET: _ClassVar[DeclineReason]
    DECLINE_REASON_PINNED: _ClassVar[DeclineReason]
    DECLINE_REASON_STATE: _ClassVar[DeclineReason]
    DECLINE_REASON_FAILED: _ClassVar[DeclineReason]
    DECLINE_REASON_FORKED: _ClassVar[DeclineReason]

class ObstacleKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBSTACLE_KIND_UNSPECIFIED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_BARRIER: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_KERNEL: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_OFF: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_PAGEMAP: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_SPACE: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_DATA: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_LOCKED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_POOL: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_LOOK: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_SEGMENT: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_LOST: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_UNREACHABLE: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_TIMEOUT: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_FORKED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_BUDGET: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_MAPPINGS: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_PINNED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_FAILED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_REFUSED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_STUCK: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_SILENT: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_EXCLUDED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_CLOSED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_FULL: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_NAMELESS: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_STOPPED: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_UNMERGING: _ClassVar[ObstacleKind]
    OBSTACLE_KIND_FAULT: _ClassVar[ObstacleKind]
REASON_UNSPECIFIED: Reason
REASON_PROTOCOL_MISMATCH: Reason
REASON_PAGE_SIZE_MISMATCH: Reason
REASON_UNKNOWN_SESSION: Reason
REASON_BAD_NAME: Reason
REASON_NOT_A_SEGMENT: Reason
REASON_BAD_SIZE: Reason
REASON_WRONG_OWNER: Reason
REASON_LEASE_NOT_HELD: Reason
REASON_LIMIT: Reason
REASON_PROTOCOL_VIOLATION: Reason
REASON_BAD_TOKEN: Reason
REASON_BAD_CONFIG: Reason
REASON_SHUTTING_DOWN: Reason
REASON_SEGMENT_IN_USE: Reason
REASON_INTERNAL: Reason
TIER_UNSPECIFIED: Tier
TIER_UFFD: Tier
TIER_USER: Tier
TIER_OFF: Tier
TRACKER_UNSPECIFIED: Tracker
TRACKER_CHECKSUM: Tracker
TRACKER_PAGEMAP: Tracker
BACKING_UNSPECIFIED: Backing
BACKING_SHM: Backing
BACKING_MEMFD: Backing
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_MERGED: EventKind
EVENT_KIND_DECLINED: EventKind
EVENT_KIND_COPIED: EventKind
EVENT_KIND_RELEASED: EventKind
EVENT_KIND_NOT_ADOPTED: EventKind
EVENT_KIND_EXCLUDED: EventKind
EVENT_KIND_INCLUDED: EventKind
EVENT_KIND_WRITTEN: EventKind
EVENT_KIND_RESUMED: EventKind
RELEASED_DETAIL_ADOPTED: ReleasedDetail
RELEASED_DETAIL_DISCARDED: ReleasedDetail
WRITTEN_DETAIL_WRITTEN: WrittenDetail
WRITTEN_DETAIL_POSSIBLY: WrittenDetail
WRITTEN_DETAIL_GIVEN_BACK: WrittenDetail
DECLINE_REASON_UNSPECIFIED: DeclineReason
DECLINE_REASON_CHANGED: DeclineReason
DECLINE_REASON_BUDGET: DeclineReason
DECLINE_REASON_PINNED: DeclineReason
DECLINE_REASON_STATE: DeclineReason
DECLINE_REASON_FAILED: DeclineReason
DECLINE_REASON_FORKED: DeclineReason
OBSTACLE_KIND_UNSPECIFIED: ObstacleKind
OBSTACLE_KIND_BARRIER: ObstacleKind
OBSTACLE_KIND_KERNEL: ObstacleKind
OBSTACLE_KIND_OFF: ObstacleKind
OBSTACLE_KIND_PAGEMAP: ObstacleKind
OBSTACLE_KIND_SPACE: ObstacleKind
OBSTACLE_KIND_DATA: ObstacleKind
OBSTACLE_KIND_LOCKED: ObstacleKind
OBSTACLE_KIND_POOL: ObstacleKind
OBSTACLE_KIND_LOOK: ObstacleKind
OBSTACLE_KIND_SEGMENT: ObstacleKind
OBSTACLE_KIND_LOST: ObstacleKind
OBSTACLE_KIND_UNREACHABLE: ObstacleKind
OBSTACLE_KIND_TIMEOUT: ObstacleKind
OBSTACLE_KIND_FORKED: ObstacleKind
OBSTACLE_KIND_BUDGET: ObstacleKind
OBSTACLE_KIND_MAPPINGS: ObstacleKind
OBSTACLE_KIND_PINNED: ObstacleKind
OBSTACLE_KIND_FAILED: ObstacleKind
OBSTACLE_KIND_REFUSED: ObstacleKind
OBSTACLE_KIND_STUCK: ObstacleKind
OBSTACLE_KIND_SILENT: ObstacleKind
OBSTACLE_KIND_EXCLUDED: ObstacleKind
OBSTACLE_KIND_CLOSED: ObstacleKind
OBSTACLE_KIND_FULL: ObstacleKind
OBSTACLE_KIND_NAMELESS: ObstacleKind
OBSTACLE_KIND_STOPPED: ObstacleKind
OBSTACLE_KIND_UNMERGING: ObstacleKind
OBSTACLE_KIND_FAULT: ObstacleKind

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "page_size", "pid", "program", "version", "label", "lease", "doorbell", "tier", "tracker", "slot", "proof")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    DOORBELL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    TRACKER_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    page_size: int
    pid: int
    program: str
    version: str
    label: str
    lease: str
    doorbell: str
    tier: Tier
    tracker: Tracker
    slot: int
    proof: bytes
    def __init__(self, protocol: _Optional[int] = ..., page_size: _Optional[int] = ..., pid: _Optional[int] = ..., program: _Optional[str] = ..., version: _Optional[str] = ..., label: _Optional[str] = ..., lease: _Optional[str] = ..., doorbell: _Optional[str] = ..., tier: _Optional[_Union[Tier, str]] = ..., tracker: _Optional[_Union[Tracker, str]] = ..., slot: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("session", "instance", "version", "max_batch_pages", "max_message_bytes", "poll_millisecs", "pool")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_PAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    POLL_MILLISECS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    instance: bytes
    version: str
    max_batch_pages: int
    max_message_bytes: int
    poll_millisecs: int
    pool: str
    def __init__(self, session: _Optional[bytes] = ..., instance: _Optional[bytes] = ..., version: _Optional[str] = ..., max_batch_pages: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., poll_millisecs: _Optional[int] = ..., pool: _Optional[str] = ...) -> None: ...

class AddSegmentRequest(_message.Message):
    __slots__ = ("session", "segment", "name", "pages", "backing", "pid", "descriptor", "inherited", "address")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    BACKING_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    INHERITED_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    segment: int
    name: str
    pages: int
    backing: Backing
    pid: int
    descriptor: int
    inherited: bool
    address: int
    def __init__(self, session: _Optional[bytes] = ..., segment: _Optional[int] = ..., name: _Optional[str] = ..., pages: _Optional[int] = ..., backing: _Optional[_Union[Backing, str]] = ..., pid: _Optional[int] = ..., descriptor: _Optional[int] = ..., inherited: bool = ..., address: _Optional[int] = ...) -> None: ...

class AddSegmentReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Events(_message.Message):
    __slots__ = ("kind", "segment", "first", "count", "pool", "frame", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: _containers.RepeatedScalarFieldContainer[EventKind]
    segment: _containers.RepeatedScalarFieldContainer[int]
    first: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    pool: _containers.RepeatedScalarFieldContainer[int]
    frame: _containers.RepeatedScalarFieldContainer[int]
    detail: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Iterable[_Union[EventKind, str]]] = ..., segment: _Optional[_Iterable[int]] = ..., first: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ..., pool: _Optional[_Iterable[int]] = ..., frame: _Optional[_Iterable[int]] = ..., detail: _Optional[_Iterable[int]] = ...) -> None: ...

class Gauges(_message.Message):
    __slots__ = ("owned_pages", "merged_pages", "zero_pages", "copied_pages", "mappings", "mapping_budget", "windows", "window_p99_micros", "window_max_micros", "shared_pages")
    OWNED_PAGES_FIELD_NUMBER: _ClassVar[int]
    MERGED_PAGES_FIELD_NUMBER: _ClassVar[int]
    ZERO_PAGES_FIELD_NUMBER: _ClassVar[int]
    COPIED_PAGES_FIELD_NUMBER: _ClassVar[int]
    MAPPINGS_FIELD_NUMBER: _ClassVar[int]
    MAPPING_BUDGET_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_P99_MICROS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_MAX_MICROS_FIELD_NUMBER: _ClassVar[int]
    SHARED_PAGES_FIELD_NUMBER: _ClassVar[int]
    owned_pages: int
    merged_pages: int
    zero_pages: int
    copied_pages: int
    mappings: int
    mapping_budget: int
    windows: int
    window_p99_micros: int
    window_max_micros: int
    shared_pages: int
    def __init__(self, owned_pages: _Optional[int] = ..., merged_pages: _Optional[int] = ..., zero_pages: _Optional[int] = ..., copied_pages: _Optional[int] = ..., mappings: _Optional[int] = ..., mapping_budget: _Optional[int] = ..., windows: _Optional[int] = ..., window_p99_micros: _Optional[int] = ..., window_max_micros: _Optional[int] = ..., shared_pages: _Optional[int] = ...) -> None: ...

class Obstacle(_message.Message):
    __slots__ = ("kind", "pages", "error", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: ObstacleKind
    pages: int
    error: int
    detail: str
    def __init__(self, kind: _Optional[_Union[ObstacleKind, str]] = ..., pages: _Optional[int] = ..., error: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("session", "sequence", "events", "gauges", "settling", "looked", "resuming", "obstacles")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    GAUGES_FIELD_NUMBER: _ClassVar[int]
    SETTLING_FIELD_NUMBER: _ClassVar[int]
    LOOKED_FIELD_NUMBER: _ClassVar[int]
    RESUMING_FIELD_NUMBER: _ClassVar[int]
    OBSTACLES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    sequence: int
    events: Events
    gauges: Gauges
    settling: int
    looked: int
    resuming: bool
    obstacles: _containers.RepeatedCompositeFieldContainer[Obstacle]
    def __init__(self, session: _Optional[bytes] = ..., sequence: _Optional[int] = ..., events: _Optional[_Union[Events, _Mapping]] = ..., gauges: _Optional[_Union[Gauges, _Mapping]] = ..., settling: _Optional[int] = ..., looked: _Optional[int] = ..., resuming: bool = ..., obstacles: _Optional[_Iterable[_Union[Obstacle, _Mapping]]] = ...) -> None: ...

class MergeBatch(_message.Message):
    __slots__ = ("segment", "first", "count", "pool", "frame")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    segment: _containers.RepeatedScalarFieldContainer[int]
    first: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    pool: _containers.RepeatedScalarFieldContainer[int]
    frame: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, segment: _Optional[_Iterable[int]] = ..., first: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ..., pool: _Optional[_Iterable[int]] = ..., frame: _Optional[_Iterable[int]] = ...) -> None: ...

class AdoptBatch(_message.Message):
    __slots__ = ("segment", "first", "count")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    segment: _containers.RepeatedScalarFieldContainer[int]
    first: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, segment: _Optional[_Iterable[int]] = ..., first: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ...) -> None: ...

class PoolInfo(_message.Message):
    __slots__ = ("pool", "name")
    POOL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    pool: int
    name: str
    def __init__(self, pool: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class SettleReport(_message.Message):
    __slots__ = ("settling", "settled", "passes", "merged_pages", "pages_shared", "pages_sharing", "zero_pages", "pages_unshared", "pages_volatile", "pages_waiting", "pages_over_budget", "pages_refused", "obstacles")
    SETTLING_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    MERGED_PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGES_SHARED_FIELD_NUMBER: _ClassVar[int]
    PAGES_SHARING_FIELD_NUMBER: _ClassVar[int]
    ZERO_PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGES_UNSHARED_FIELD_NUMBER: _ClassVar[int]
    PAGES_VOLATILE_FIELD_NUMBER: _ClassVar[int]
    PAGES_WAITING_FIELD_NUMBER: _ClassVar[int]
    PAGES_OVER_BUDGET_FIELD_NUMBER: _ClassVar[int]
    PAGES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    OBSTACLES_FIELD_NUMBER: _ClassVar[int]
    settling: int
    settled: bool
    passes: int
    merged_pages: int
    pages_shared: int
    pages_sharing: int
    zero_pages: int
    pages_unshared: int
    pages_volatile: int
    pages_waiting: int
    pages_over_budget: int
    pages_refused: int
    obstacles: _containers.RepeatedCompositeFieldContainer[Obstacle]
    def __init__(self, settling: _Optional[int] = ..., settled: bool = ..., passes: _Optional[int] = ..., merged_pages: _Optional[int] = ..., pages_shared: _Optional[int] = ..., pages_sharing: _Optional[int] = ..., zero_pages: _Optional[int] = ..., pages_unshared: _Optional[int] = ..., pages_volatile: _Optional[int] = ..., pages_waiting: _Optional[int] = ..., pages_over_budget: _Optional[int] = ..., pages_refused: _Optional[int] = ..., obstacles: _Optional[_Iterable[_Union[Obstacle, _Mapping]]] = ...) -> None: ...

class DomainTotals(_message.Message):
    __slots__ = ("pages_shared", "pages_sharing", "zero_pages")
    PAGES_SHARED_FIELD_NUMBER: _ClassVar[int]
    PAGES_SHARING_FIELD_NUMBER: _ClassVar[int]
    ZERO_PAGES_FIELD_NUMBER: _ClassVar[int]
    pages_shared: int
    pages_sharing: int
    zero_pages: int
    def __init__(self, pages_shared: _Optional[int] = ..., pages_sharing: _Optional[int] = ..., zero_pages: _Optional[int] = ...) -> None: ...

class ExchangeReply(_message.Message):
    __slots__ = ("pools", "merges", "adopts", "more", "settle_report", "totals", "look", "obstacles")
    POOLS_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    ADOPTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SETTLE_REPORT_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    OBSTACLES_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[PoolInfo]
    merges: MergeBatch
    adopts: AdoptBatch
    more: bool
    settle_report: SettleReport
    totals: DomainTotals
    look: int
    obstacles: _containers.RepeatedCompositeFieldContainer[Obstacle]
    def __init__(self, pools: _Optional[_Iterable[_Union[PoolInfo, _Mapping]]] = ..., merges: _Optional[_Union[MergeBatch, _Mapping]] = ..., adopts: _Optional[_Union[AdoptBatch, _Mapping]] = ..., more: bool = ..., settle_report: _Optional[_Union[SettleReport, _Mapping]] = ..., totals: _Optional[_Union[DomainTotals, _Mapping]] = ..., look: _Optional[int] = ..., obstacles: _Optional[_Iterable[_Union[Obstacle, _Mapping]]] = ...) -> None: ...

class DropSegmentRequest(_message.Message):
    __slots__ = ("session", "segment")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    segment: int
    def __init__(self, session: _Optional[bytes] = ..., segment: _Optional[int] = ...) -> None: ...

class DropSegmentReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ByeRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class ByeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
