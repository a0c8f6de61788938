from pagefold_proto.v1 import memory_pb2 as _memory_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FindingKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINDING_KIND_UNSPECIFIED: _ClassVar[FindingKind]
    FINDING_KIND_UNHELD_MAPPING: _ClassVar[FindingKind]
    FINDING_KIND_UNMAPPED_REFERENCE: _ClassVar[FindingKind]
    FINDING_KIND_STRANGE_MAPPING: _ClassVar[FindingKind]
    FINDING_KIND_UNREPORTED_COPY: _ClassVar[FindingKind]
    FINDING_KIND_LOST_COPY: _ClassVar[FindingKind]
    FINDING_KIND_WRITABLE_FRAME: _ClassVar[FindingKind]
    FINDING_KIND_FRAME_CHANGED: _ClassVar[FindingKind]
    FINDING_KIND_FRAME_HOLE: _ClassVar[FindingKind]
    FINDING_KIND_FRAME_LEFT: _ClassVar[FindingKind]
    FINDING_KIND_FRAME_UNLISTED: _ClassVar[FindingKind]
    FINDING_KIND_MISCOUNT: _ClassVar[FindingKind]
    FINDING_KIND_BOOKS: _ClassVar[FindingKind]
    FINDING_KIND_GARBAGE: _ClassVar[FindingKind]
    FINDING_KIND_NAME_LOST: _ClassVar[FindingKind]
    FINDING_KIND_NAME_OPEN: _ClassVar[FindingKind]
    FINDING_KIND_UNREADABLE: _ClassVar[FindingKind]
    FINDING_KIND_UNANSWERED: _ClassVar[FindingKind]
    FINDING_KIND_UNSETTLED: _ClassVar[FindingKind]
FINDING_KIND_UNSPECIFIED: FindingKind
FINDING_KIND_UNHELD_MAPPING: FindingKind
FINDING_KIND_UNMAPPED_REFERENCE: FindingKind
FINDING_KIND_STRANGE_MAPPING: FindingKind
FINDING_KIND_UNREPORTED_COPY: FindingKind
FINDING_KIND_LOST_COPY: FindingKind
FINDING_KIND_WRITABLE_FRAME: FindingKind
FINDING_KIND_FRAME_CHANGED: FindingKind
FINDING_KIND_FRAME_HOLE: FindingKind
FINDING_KIND_FRAME_LEFT: FindingKind
FINDING_KIND_FRAME_UNLISTED: FindingKind
FINDING_KIND_MISCOUNT: FindingKind
FINDING_KIND_BOOKS: FindingKind
FINDING_KIND_GARBAGE: FindingKind
FINDING_KIND_NAME_LOST: FindingKind
FINDING_KIND_NAME_OPEN: FindingKind
FINDING_KIND_UNREADABLE: FindingKind
FINDING_KIND_UNANSWERED: FindingKind
FINDING_KIND_UNSETTLED: FindingKind

class Counters(_message.Message):
    __slots__ = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_skipped", "pages_scanned", "full_scans", "zero_pages", "stable_node_dups", "pages_merged", "pages_broken", "pages_declined", "pages_over_budget", "general_profit", "bookkeeping_bytes", "pages_proposed", "pages_unplaced")
    PAGES_SHARED_FIELD_NUMBER: _ClassVar[int]
    PAGES_SHARING_FIELD_NUMBER: _ClassVar[int]
    PAGES_UNSHARED_FIELD_NUMBER: _ClassVar[int]
    PAGES_VOLATILE_FIELD_NUMBER: _ClassVar[int]
    PAGES_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    PAGES_SCANNED_FIELD_NUMBER: _ClassVar[int]
    FULL_SCANS_FIELD_NUMBER: _ClassVar[int]
    ZERO_PAGES_FIELD_NUMBER: _ClassVar[int]
    STABLE_NODE_DUPS_FIELD_NUMBER: _ClassVar[int]
    PAGES_MERGED_FIELD_NUMBER: _ClassVar[int]
    PAGES_BROKEN_FIELD_NUMBER: _ClassVar[int]
    PAGES_DECLINED_FIELD_NUMBER: _ClassVar[int]
    PAGES_OVER_BUDGET_FIELD_NUMBER: _ClassVar[int]
    GENERAL_PROFIT_FIELD_NUMBER: _ClassVar[int]
    BOOKKEEPING_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_PROPOSED_FIELD_NUMBER: _ClassVar[int]
    PAGES_UNPLACED_FIELD_NUMBER: _ClassVar[int]
    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    pages_skipped: int
    pages_scanned: int
    full_scans: int
    zero_pages: int
    stable_node_dups: int
    pages_merged: int
    pages_broken: int
    pages_declined: int
    pages_over_budget: int
    general_profit: int
    bookkeeping_bytes: int
    pages_proposed: int
    pages_unplaced: int
    def __init__(self, pages_shared: _Optional[int] = ..., pages_sharing: _Optional[int] = ..., pages_unshared: _Optional[int] = ..., pages_volatile: _Optional[int] = ..., pages_skipped: _Optional[int] = ..., pages_scanned: _Optional[int] = ..., full_scans: _Optional[int] = ..., zero_pages: _Optional[int] = ..., stable_node_dups: _Optional[int] = ..., pages_merged: _Optional[int] = ..., pages_broken: _Optional[int] = ..., pages_declined: _Optional[int] = ..., pages_over_budget: _Optional[int] = ..., general_profit: _Optional[int] = ..., bookkeeping_bytes: _Optional[int] = ..., pages_proposed: _Optional[int] = ..., pages_unplaced: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "protocol", "pid", "uptime_seconds", "address", "engine", "run", "page_size", "clients", "departed", "segments", "domains", "counters", "saved_bytes", "pool_bytes", "cpu_seconds", "scan_cpu_percent", "settling", "trouble", "memfd_segments", "log", "log_lines_lost", "log_trouble", "troubles")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    DEPARTED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCAN_CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SETTLING_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    MEMFD_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LOG_LINES_LOST_FIELD_NUMBER: _ClassVar[int]
    LOG_TROUBLE_FIELD_NUMBER: _ClassVar[int]
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    version: str
    protocol: int
    pid: int
    uptime_seconds: float
    address: str
    engine: str
    run: int
    page_size: int
    clients: int
    departed: int
    segments: int
    domains: int
    counters: Counters
    saved_bytes: int
    pool_bytes: int
    cpu_seconds: float
    scan_cpu_percent: float
    settling: int
    trouble: str
    memfd_segments: int
    log: str
    log_lines_lost: int
    log_trouble: str
    troubles: _containers.RepeatedCompositeFieldContainer[Trouble]
    def __init__(self, version: _Optional[str] = ..., protocol: _Optional[int] = ..., pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., address: _Optional[str] = ..., engine: _Optional[str] = ..., run: _Optional[int] = ..., page_size: _Optional[int] = ..., clients: _Optional[int] = ..., departed: _Optional[int] = ..., segments: _Optional[int] = ..., domains: _Optional[int] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., saved_bytes: _Optional[int] = ..., pool_bytes: _Optional[int] = ..., cpu_seconds: _Optional[float] = ..., scan_cpu_percent: _Optional[float] = ..., settling: _Optional[int] = ..., trouble: _Optional[str] = ..., memfd_segments: _Optional[int] = ..., log: _Optional[str] = ..., log_lines_lost: _Optional[int] = ..., log_trouble: _Optional[str] = ..., troubles: _Optional[_Iterable[_Union[Trouble, _Mapping]]] = ...) -> None: ...

class Trouble(_message.Message):
    __slots__ = ("client", "pid", "uid", "label", "obstacle", "code", "text", "blocks")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    client: int
    pid: int
    uid: int
    label: str
    obstacle: _memory_pb2.Obstacle
    code: str
    text: str
    blocks: bool
    def __init__(self, client: _Optional[int] = ..., pid: _Optional[int] = ..., uid: _Optional[int] = ..., label: _Optional[str] = ..., obstacle: _Optional[_Union[_memory_pb2.Obstacle, _Mapping]] = ..., code: _Optional[str] = ..., text: _Optional[str] = ..., blocks: bool = ...) -> None: ...

class ListClientsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClientInfo(_message.Message):
    __slots__ = ("client", "pid", "program", "uid", "label", "tier", "tracker", "state", "segments", "bytes", "gauges", "pages_merged", "pages_proposed", "age_seconds", "silent_seconds", "version", "memfd_segments")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    TRACKER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    GAUGES_FIELD_NUMBER: _ClassVar[int]
    PAGES_MERGED_FIELD_NUMBER: _ClassVar[int]
    PAGES_PROPOSED_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMFD_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    client: int
    pid: int
    program: str
    uid: int
    label: str
    tier: _memory_pb2.Tier
    tracker: _memory_pb2.Tracker
    state: str
    segments: int
    bytes: int
    gauges: _memory_pb2.Gauges
    pages_merged: int
    pages_proposed: int
    age_seconds: float
    silent_seconds: float
    version: str
    memfd_segments: int
    def __init__(self, client: _Optional[int] = ..., pid: _Optional[int] = ..., program: _Optional[str] = ..., uid: _Optional[int] = ..., label: _Optional[str] = ..., tier: _Optional[_Union[_memory_pb2.Tier, str]] = ..., tracker: _Optional[_Union[_memory_pb2.Tracker, str]] = ..., state: _Optional[str] = ..., segments: _Optional[int] = ..., bytes: _Optional[int] = ..., gauges: _Optional[_Union[_memory_pb2.Gauges, _Mapping]] = ..., pages_merged: _Optional[int] = ..., pages_proposed: _Optional[int] = ..., age_seconds: _Optional[float] = ..., silent_seconds: _Optional[float] = ..., version: _Optional[str] = ..., memfd_segments: _Optional[int] = ...) -> None: ...

class ListClientsReply(_message.Message):
    __slots__ = ("clients",)
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[ClientInfo]
    def __init__(self, clients: _Optional[_Iterable[_Union[ClientInfo, _Mapping]]] = ...) -> None: ...

class ListSegmentsRequest(_message.Message):
    __slots__ = ("client",)
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    client: int
    def __init__(self, client: _Optional[int] = ...) -> None: ...

class SegmentInfo(_message.Message):
    __slots__ = ("client", "segment", "name", "pages", "allocated_bytes", "merged_pages", "zero_pages", "copied_pages", "backing")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MERGED_PAGES_FIELD_NUMBER: _ClassVar[int]
    ZERO_PAGES_FIELD_NUMBER: _ClassVar[int]
    COPIED_PAGES_FIELD_NUMBER: _ClassVar[int]
    BACKING_FIELD_NUMBER: _ClassVar[int]
    client: int
    segment: int
    name: str
    pages: int
    allocated_bytes: int
    merged_pages: int
    zero_pages: int
    copied_pages: int
    backing: _memory_pb2.Backing
    def __init__(self, client: _Optional[int] = ..., segment: _Optional[int] = ..., name: _Optional[str] = ..., pages: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., merged_pages: _Optional[int] = ..., zero_pages: _Optional[int] = ..., copied_pages: _Optional[int] = ..., backing: _Optional[_Union[_memory_pb2.Backing, str]] = ...) -> None: ...

class ListSegmentsReply(_message.Message):
    __slots__ = ("segments",)
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[SegmentInfo]
    def __init__(self, segments: _Optional[_Iterable[_Union[SegmentInfo, _Mapping]]] = ...) -> None: ...

class ListDomainsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DomainInfo(_message.Message):
    __slots__ = ("uid", "label", "clients", "segments", "counters", "pool", "pool_bytes", "cpu_seconds")
    UID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    uid: int
    label: str
    clients: int
    segments: int
    counters: Counters
    pool: str
    pool_bytes: int
    cpu_seconds: float
    def __init__(self, uid: _Optional[int] = ..., label: _Optional[str] = ..., clients: _Optional[int] = ..., segments: _Optional[int] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., pool: _Optional[str] = ..., pool_bytes: _Optional[int] = ..., cpu_seconds: _Optional[float] = ...) -> None: ...

class TenantInfo(_message.Message):
    __slots__ = ("uid", "sessions", "domains", "segments", "bytes", "mappings", "scan_cpu_seconds", "call_cpu_seconds", "calls_delayed", "pool_bytes")
    UID_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MAPPINGS_FIELD_NUMBER: _ClassVar[int]
    SCAN_CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CALL_CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CALLS_DELAYED_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    uid: int
    sessions: int
    domains: int
    segments: int
    bytes: int
    mappings: int
    scan_cpu_seconds: float
    call_cpu_seconds: float
    calls_delayed: int
    pool_bytes: int
    def __init__(self, uid: _Optional[int] = ..., sessions: _Optional[int] = ..., domains: _Optional[int] = ..., segments: _Optional[int] = ..., bytes: _Optional[int] = ..., mappings: _Optional[int] = ..., scan_cpu_seconds: _Optional[float] = ..., call_cpu_seconds: _Optional[float] = ..., calls_delayed: _Optional[int] = ..., pool_bytes: _Optional[int] = ...) -> None: ...

class ListDomainsReply(_message.Message):
    __slots__ = ("domains", "tenants")
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    domains: _containers.RepeatedCompositeFieldContainer[DomainInfo]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantInfo]
    def __init__(self, domains: _Optional[_Iterable[_Union[DomainInfo, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantInfo, _Mapping]]] = ...) -> None: ...

class GetConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Setting(_message.Message):
    __slots__ = ("key", "value", "default_value", "origin", "live", "description")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    default_value: str
    origin: str
    live: bool
    description: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ..., default_value: _Optional[str] = ..., origin: _Optional[str] = ..., live: bool = ..., description: _Optional[str] = ...) -> None: ...

class GetConfigReply(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class SetConfigRequest(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, str]
    def __init__(self, values: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SetConfigReply(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

class ScanNowRequest(_message.Message):
    __slots__ = ("timeout_seconds",)
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    timeout_seconds: float
    def __init__(self, timeout_seconds: _Optional[float] = ...) -> None: ...

class ScanNowReply(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: _memory_pb2.SettleReport
    def __init__(self, report: _Optional[_Union[_memory_pb2.SettleReport, _Mapping]] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("interval_seconds",)
    INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    interval_seconds: float
    def __init__(self, interval_seconds: _Optional[float] = ...) -> None: ...

class FsckRequest(_message.Message):
    __slots__ = ("thorough", "patience_seconds", "names")
    THOROUGH_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    thorough: bool
    patience_seconds: float
    names: bool
    def __init__(self, thorough: bool = ..., patience_seconds: _Optional[float] = ..., names: bool = ...) -> None: ...

class FsckFinding(_message.Message):
    __slots__ = ("kind", "text", "uid", "label", "client", "pid", "segment", "page", "count", "pool", "frame", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: FindingKind
    text: str
    uid: int
    label: str
    client: int
    pid: int
    segment: int
    page: int
    count: int
    pool: str
    frame: int
    name: str
    def __init__(self, kind: _Optional[_Union[FindingKind, str]] = ..., text: _Optional[str] = ..., uid: _Optional[int] = ..., label: _Optional[str] = ..., client: _Optional[int] = ..., pid: _Optional[int] = ..., segment: _Optional[int] = ..., page: _Optional[int] = ..., count: _Optional[int] = ..., pool: _Optional[str] = ..., frame: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class FsckProgress(_message.Message):
    __slots__ = ("stage", "done", "total")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: int
    total: int
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class FsckTally(_message.Message):
    __slots__ = ("kind", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: FindingKind
    count: int
    def __init__(self, kind: _Optional[_Union[FindingKind, str]] = ..., count: _Optional[int] = ...) -> None: ...

class FsckSummary(_message.Message):
    __slots__ = ("tallies", "domains", "clients", "processes", "unreadable", "pages", "references", "frames", "names", "names_elsewhere", "looks", "seconds")
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NAMES_ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    LOOKS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    tallies: _containers.RepeatedCompositeFieldContainer[FsckTally]
    domains: int
    clients: int
    processes: int
    unreadable: int
    pages: int
    references: int
    frames: int
    names: int
    names_elsewhere: int
    looks: int
    seconds: float
    def __init__(self, tallies: _Optional[_Iterable[_Union[FsckTally, _Mapping]]] = ..., domains: _Optional[int] = ..., clients: _Optional[int] = ..., processes: _Optional[int] = ..., unreadable: _Optional[int] = ..., pages: _Optional[int] = ..., references: _Optional[int] = ..., frames: _Optional[int] = ..., names: _Optional[int] = ..., names_elsewhere: _Optional[int] = ..., looks: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class FsckName(_message.Message):
    __slots__ = ("name", "holder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    holder: str
    def __init__(self, name: _Optional[str] = ..., holder: _Optional[str] = ...) -> None: ...

class FsckNews(_message.Message):
    __slots__ = ("progress", "finding", "summary", "name")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINDING_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    progress: FsckProgress
    finding: FsckFinding
    summary: FsckSummary
    name: FsckName
    def __init__(self, progress: _Optional[_Union[FsckProgress, _Mapping]] = ..., finding: _Optional[_Union[FsckFinding, _Mapping]] = ..., summary: _Optional[_Union[FsckSummary, _Mapping]] = ..., name: _Optional[_Union[FsckName, _Mapping]] = ...) -> None: ...
