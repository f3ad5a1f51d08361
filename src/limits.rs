//! Every bound in one place: those that are fixed here, those that an operator sets in [`Limits`].
//!
//! Units are in the names. Pairs that must agree are asserted at compile time.

mod hit;

use serde::{Deserialize, Serialize};

pub use self::hit::Limit;
use crate::types::{ByteSize, Count, Level, Span};

/// The longest user id.
pub const USER_ID_BYTES_MAX: usize = 255;
/// The longest device name.
pub const DEVICE_BYTES_MAX: usize = 64;
/// The longest notification id.
pub const NOTIFICATION_ID_BYTES_MAX: usize = 128;
/// The longest collapse key.
pub const COLLAPSE_KEY_BYTES_MAX: usize = 128;
/// The longest name of a topic.
pub const TOPIC_BYTES_MAX: usize = 200;
/// The longest pattern of `[[topics]]`.
pub const TOPIC_PATTERN_BYTES_MAX: usize = 256;
/// The rules of `[[topics]]`; a message of a client may meet all of them.
pub const TOPIC_RULES_MAX: usize = 256;
/// What is kept of a durable topic where its rule does not say how much, and the most that it may say.
pub const TOPIC_RECORDS: u32 = 1000;
/// See [`TOPIC_RECORDS`].
pub const TOPIC_RECORDS_MAX: u32 = 65_536;
/// The users and sessions that one Subscribe or Unsubscribe may name.
pub const SUBSCRIBERS_MAX: usize = 1000;
/// A client's stored messages that wait to be taken by the store, of one session; with more it is told to slow down.
pub const CLIENT_SENDS_MAX: usize = 1024;
/// The bytes of those messages; one that is larger waits alone.
pub const CLIENT_SENDS_BYTES_MAX: usize = 1024 * 1024;
/// The users whom one broadcast may leave out.
pub const EXCLUDED_USERS_MAX: usize = 1000;
/// The sessions that one broadcast may leave out.
pub const EXCLUDED_SESSIONS_MAX: usize = 1000;
/// Durable broadcasts that wait at once; each is kept until its TTL runs out.
pub const BROADCASTS_MAX: usize = 65_536;
/// The names of forgotten devices that are kept for a user, so that one that returns is told of its gap.
pub const FORGOTTEN_DEVICES_MAX: usize = 32;
/// How many of a user's latest ends of notifications with a caller's own id are remembered for a repeated call.
pub const REMEMBERED_ENDS_MAX: usize = 256;
/// The longest message type, of a notification or of a client's message.
pub const TYPE_BYTES_MAX: usize = 128;
/// The longest `id` a client may give a message.
pub const CLIENT_ID_BYTES_MAX: usize = 128;
/// The largest head of an HTTP request on the ops listener, and what hyper reads one into at least.
pub const HTTP_HEAD_BYTES_MAX: usize = 8 * 1024;
/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 7 * 1024;
/// Tokens that are known to be good until they run out, at most, and half as many at least; some 200 bytes each. As many
/// as `limits.connections` has by default, so that a node's clients may come back all at once.
pub const VERIFIED_TOKENS_MAX: usize = 256 * 1024;
/// Tokens and users whose tokens are known to be void, at most; some 50 bytes of memory each.
pub const REVOCATIONS_MAX: usize = 256 * 1024;
/// The largest set of keys that is read.
pub const JWKS_BYTES_MAX: usize = 1024 * 1024;
/// The keys that it may have.
pub const JWKS_KEYS_MAX: usize = 256;
/// How long fetching it may take, redirects included.
pub const JWKS_FETCH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// The redirects that are followed.
pub const JWKS_REDIRECTS_MAX: usize = 3;
/// How often tokens that name a key that nobody knows have it fetched: so many times, and one more each time that this has
/// passed.
pub const JWKS_ASKED_AT_ONCE: u32 = 5;
/// See [`JWKS_ASKED_AT_ONCE`].
pub const JWKS_ASKED_EVERY: std::time::Duration = std::time::Duration::from_secs(10);
/// How often key files are looked at; one that changed is read once it has stayed the same for as long.
pub const KEY_FILES_LOOKED_AT: std::time::Duration = std::time::Duration::from_secs(1);
/// The keys that one token's signature is tried with.
pub const KEYS_TRIED_MAX: usize = 16;
/// How long who brings no token has to send one before he is a guest (`auth.anonymous`), where `auth.timeout` is longer.
pub const GUEST_GRACE: std::time::Duration = std::time::Duration::from_secs(1);
/// How many topics a session may join and leave a second, beyond `limits.membership_changes` at once. Each of them may be told
/// to a thousand others.
pub const MEMBERSHIP_CHANGES_PER_SECOND: u32 = 8;
/// The most bytes of a token's claims that a session keeps, as JSON; a token with more is refused.
pub const KEPT_CLAIMS_BYTES_MAX: usize = 4096;
/// The most of them with which a token that was found good is remembered.
pub const REMEMBERED_CLAIMS_BYTES_MAX: usize = 512;
/// The largest message before authentication.
pub const UNAUTHENTICATED_MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// What may come over a WebSocket before it has authenticated, fragments and control frames included; what comes right
/// behind the `auth` message in one read counts as well.
pub const UNAUTHENTICATED_BYTES_MAX: usize = 8 * UNAUTHENTICATED_MESSAGE_BYTES_MAX;
/// Handshakes under way of one address, beyond as many as it may have connections (`limits.connections_per_address`): so that
/// one too many can be told so. Further ones are dropped unheard.
pub const ADDRESS_REFUSALS_MAX: usize = 32;
/// The cells of each of the two tables that hold the rates of addresses: half a megabyte in all, whoever comes.
pub const ADDRESS_RATE_CELLS: usize = 8192;
/// How often the process's memory is looked at, at most, and only where somebody wants to come in.
pub const MEMORY_LOOK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);
/// In hundredths of `limits.memory`: once it was reached, connections are let in again below this.
pub const MEMORY_EASED_PERCENT: u64 = 95;
/// How long a new device counts as new (`limits.new_devices_per_hour`).
pub const NEW_DEVICE_SPAN: std::time::Duration = std::time::Duration::from_secs(3600);
/// Log lines of one kind that anybody can cause: so many in a span, and the rest as one number at its end.
pub const REPEATED_LINES_MAX: u32 = 20;
/// See [`REPEATED_LINES_MAX`].
pub const REPEATED_LINES_SPAN: std::time::Duration = std::time::Duration::from_secs(10);
/// The shortest message that is compressed: what a shorter one would save is less than a packet's own head.
pub const DEFLATE_BYTES_MIN: usize = 256;
/// How hard is tried to compress it, 1 to 9.
pub const DEFLATE_LEVEL: u32 = 1;
/// The extensions that a handshake may offer, each with its parameters; one that offers more is refused.
pub const EXTENSION_OFFERS_MAX: usize = 32;
/// How deep a client's JSON may nest.
pub const CLIENT_JSON_DEPTH_MAX: usize = 32;
/// How deep a notification's JSON may nest: what common parsers take.
pub const NOTIFICATION_JSON_DEPTH_MAX: usize = 128;
/// How much of a `User-Agent` is kept.
pub const USER_AGENT_BYTES_MAX: usize = 256;
/// The longest pattern over a `User-Agent`: no shorter than what is kept of one.
pub const PATTERN_BYTES_MAX: usize = 256;
/// The devices that the filter of a broadcast may name.
pub const FILTER_DEVICES_MAX: usize = 100;
/// The claims that the filter of a broadcast may ask for.
pub const FILTER_CLAIMS_MAX: usize = 16;
/// The longest text that the filter of a broadcast may ask of a claim.
pub const FILTER_CLAIM_BYTES_MAX: usize = 1024;
/// The longest reason of a close frame (RFC 6455 section 5.5: 125 bytes less the code).
pub const CLOSE_REASON_BYTES_MAX: usize = 123;
/// The bytes of notifications in flight on a session, unconfirmed; an empty window takes one of any size.
pub const WINDOW_BYTES_MAX: usize = 512 * 1024;
/// How long a closing connection is read on for the peer's close frame.
pub const CLOSE_LINGER: std::time::Duration = std::time::Duration::from_secs(1);
/// How long a connection to the gRPC or ops listener may take to begin; to the public one, `limits.handshake_timeout`.
pub const HANDSHAKE_HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// The longest header of the PROXY protocol, what is skipped of it included.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 * 1024;
/// What a session's TLS keeps encrypted for a socket that takes nothing, in bytes of what is encrypted.
pub const TLS_HELD_BACK_BYTES_MAX: usize = 32 * 1024;
/// The largest file of certificates, of a key, or of authorities.
pub const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// How often it is looked whether the files of certificates and keys have changed; they are read once two looks found
/// the same, so that what is half written is left alone.
pub const TLS_FILES_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
/// After how long files that could not be used are tried again, although they look the same.
pub const TLS_FILES_RETRY: std::time::Duration = std::time::Duration::from_secs(60);
/// How often at most the log says that TLS handshakes failed.
pub const TLS_FAILURES_LOG_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);
/// The most rows of a page that lists something.
pub const PAGE_ROWS_MAX: usize = 1000;
/// The rows of a page where the caller names no number.
pub const PAGE_ROWS_DEFAULT: usize = 100;
/// A page of users, with what their tokens say of them, is full beyond so many bytes.
pub const USERS_PAGE_BYTES_MAX: usize = 1024 * 1024;
/// What waits to be committed at most, in bytes of records; further senders wait for room.
pub const WRITER_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A stored value above this is written in chunks of this size.
pub const STORE_CHUNK_BYTES_MAX: usize = 4 * 1024;
/// The rows that one commit of the store writes; an op of more rows makes a commit of its own.
pub const STORE_BATCH_ROWS_MAX: usize = 2048;
/// The ops in the writer's queue, and the places of those that were taken back, at which the oldest are committed although
/// nobody waits for them.
pub const STORE_QUEUE_SLOTS_MAX: usize = 2 * STORE_BATCH_ROWS_MAX;
/// The bytes of records that one commit of the store writes; a larger record makes a commit of its own.
pub const STORE_BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a notification for which nobody waits (`WAIT_ACCEPTED`) may stay in memory before it is committed: time for
/// those who are online to confirm it, after which it need not be.
pub const STORE_PATIENCE: std::time::Duration = std::time::Duration::from_millis(10);
/// How long any other write that nobody waits for may stay in memory before it is committed.
pub const STORE_LAZY_DELAY: std::time::Duration = std::time::Duration::from_millis(250);
/// The threads that read the store.
pub const STORE_READERS: usize = 2;
/// The reads that wait for those threads; further readers wait for room.
pub const STORE_READ_QUEUE_JOBS_MAX: usize = 1024;
/// How often the size of the store on disk is taken at most.
pub const STORE_DISK_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
/// The same while nothing is written: others use the disk, too.
pub const STORE_DISK_REST: std::time::Duration = std::time::Duration::from_secs(5);
/// How long opening the store waits for another process to let go of it.
pub const STORE_LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(2);
/// A store whose damage is to be refused is tried out on a copy up to this size (sled only).
pub const STORE_COPY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// What `store.max_disk` keeps back for cursors and deletions, at most; else a sixteenth of it.
pub const STORE_DISK_RESERVE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The longest path that a caller may name (the kernel's PATH_MAX, less the end of the text).
pub const PATH_BYTES_MAX: usize = 4095;
/// Keys that commits change while a backup copies are noted up to so many bytes; the backup fails where that is too few.
pub const BACKUP_NOTED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest line of an export that is read: the largest notification, written as text in the longest way.
pub const IMPORT_LINE_BYTES_MAX: usize = 6 * WRITER_QUEUE_BYTES_MAX + 1024 * 1024;
/// What is set aside on the store's disk for the time when it is full, at most; else a sixteenth of the file system. So
/// much must be free besides, or senders are refused.
pub const STORE_BALLAST_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long the store waits before it is opened again after its disk was full: at first, and at most.
pub const STORE_REOPEN_DELAY: (std::time::Duration, std::time::Duration) =
    (std::time::Duration::from_millis(100), std::time::Duration::from_secs(5));
/// How often the service manager is told how the daemon stands.
pub const STATUS_INTERVAL: std::time::Duration = std::time::Duration::from_secs(3);
/// The same while it drains or stops.
pub const STATUS_INTERVAL_STOPPING: std::time::Duration = std::time::Duration::from_secs(1);
/// How long one commit may run before the store counts as stuck.
pub const STORE_STUCK_AFTER: std::time::Duration = std::time::Duration::from_secs(30);
/// How long a stuck commit has before the process is ended.
pub const STORE_STUCK_GRACE: std::time::Duration = std::time::Duration::from_secs(5);
/// Users without a session whose state is kept in memory.
pub const IDLE_USERS_MAX: usize = 65_536;
/// Bytes of broadcasts that wait to be handed out.
pub const BROADCAST_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most bytes of a gRPC call's headers. A list that goes on in CONTINUATION frames beyond it, or for more frames than
/// it could need, ends the connection.
pub const GRPC_HEADER_BYTES_MAX: u32 = 16 * 1024;
/// How long a connection to a gRPC listener over TCP may be there before a call with a token comes over it, or one that is
/// answered OK; one that proves by a certificate who calls has no such bound.
pub const GRPC_FIRST_CALL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// The smallest bound on a gRPC request; `limits.notification_bytes` may ask for more.
pub const GRPC_REQUEST_BYTES_MIN: usize = 4 * 1024 * 1024;
/// What a gRPC caller may send on a stream that is not read: as much as a batch has under way at 256 bytes a request, so
/// that it never stops for leave to go on.
pub const GRPC_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same on all streams of a connection. Far above the window of one stream: h2 gives a peer half of this for the cost
/// of small frames that wait, and takes who uses it up for an attacker, who is cut off; a batch that waits for its turn is
/// none.
pub const GRPC_CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Connections to one ops listener at once; further ones wait to be accepted.
pub const OPS_CONNECTIONS_MAX: usize = 1024;
/// Calls of the admin API under way on one ops listener; further ones are refused (503). So there is always room for
/// probes.
pub const OPS_CALLS_MAX: usize = 256;
/// The least bound on the body of a call over HTTP, and how many times `limits.notification_bytes` it is else: text that is
/// escaped takes more than what it stands for.
pub const OPS_BODY_BYTES_MIN: usize = 1024 * 1024;
/// See [`OPS_BODY_BYTES_MIN`].
pub const OPS_BODY_NOTIFICATIONS: usize = 4;
/// The bytes of bodies that are under way on one ops listener, read or not yet understood; a call whose body finds no room is
/// refused (503). One body of any size has room.
pub const OPS_BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The JSON values and names in one body: numbers, lists, objects and what is in them. As messages they take about a KiB
/// each, however short they are as text.
pub const OPS_BODY_VALUES_MAX: usize = 32 * 1024;
/// The same of the bodies that one ops listener reads at once; further ones wait for their turn.
pub const OPS_VALUES_MAX: usize = 2 * OPS_BODY_VALUES_MAX;
/// How long the body of a call over HTTP may take to arrive.
pub const OPS_BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// What of a body that is refused is read on, so that its sender gets to read why: bytes, and time.
pub const OPS_DISCARD: (usize, std::time::Duration) = (16 * 1024 * 1024, std::time::Duration::from_secs(2));
/// The longest filter of the log that a caller may set.
pub const LOG_FILTER_BYTES_MAX: usize = 4 * 1024;
/// Requests under way on one SendBatch stream, and answers that wait to be read; beyond it the stream is not read.
pub const BATCH_IN_FLIGHT_MAX: usize = 1024;
/// The bytes of those requests; one that is larger is under way alone.
pub const BATCH_IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long what a SendBatch stream has begun may take to end once the daemon stops.
pub const BATCH_STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(1);
/// The longest `request_id` of a SendBatch.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// How long WAIT_CONFIRMED waits where the caller says nothing.
pub const WAIT_TIMEOUT_DEFAULT: std::time::Duration = std::time::Duration::from_secs(10);
/// How long WAIT_CONFIRMED waits at most.
pub const WAIT_TIMEOUT_MAX: std::time::Duration = std::time::Duration::from_secs(300);
/// How long calls under way may take to end once the daemon stops.
pub const GRPC_STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(2);
/// Requests of one session that wait for a service's reply; further ones are refused.
pub const OPEN_REQUESTS_MAX: usize = 256;
/// What clients' messages that are kept among the events may take; the oldest make room.
pub const EVENT_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Messages that wait for one consumer of a group; where all of the group have so many, it takes no more.
pub const GROUP_QUEUE_MESSAGES_MAX: usize = 1024;
/// The bytes of those messages; an empty queue takes one of any size.
pub const GROUP_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The bytes of comings and goings that wait to be told in one topic; who comes when there are more is not told of, as
/// above `presence.max_listed`, and neither is that he goes.
pub const PRESENCE_QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// The lists that wait to be made in one topic; who asks for more is told to slow down.
pub const LISTS_QUEUE_MAX: usize = 1024;
/// The longest name of a group of consumers.
pub const GROUP_BYTES_MAX: usize = 128;
/// The message types that one consumer may name.
pub const MESSAGE_TYPES_MAX: usize = 1000;
/// The sessions of a snapshot that are looked at in one go.
pub const SNAPSHOT_PAGE_SESSIONS: usize = 256;
/// Descriptors that are kept from clients' connections for the store, the listeners, callers: a sixteenth, within these
/// bounds (as many as callers have by default, `grpc.max_connections`), and never more than half.
const DESCRIPTORS_BESIDE_CLIENTS: (u64, u64) = (1024, 2048);
/// The clients' connections that so many descriptors have room for.
pub fn room_for_clients(descriptors: u64) -> u64 {
    let beside = (descriptors / 16).clamp(DESCRIPTORS_BESIDE_CLIENTS.0, DESCRIPTORS_BESIDE_CLIENTS.1);
    descriptors - beside.min(descriptors / 2)
}
/// As many descriptors as have room for so many. A fifteenth of these is a sixteenth of all.
pub fn descriptors_for_clients(clients: u64) -> u64 {
    let beside = clients.div_ceil(15).clamp(DESCRIPTORS_BESIDE_CLIENTS.0, DESCRIPTORS_BESIDE_CLIENTS.1);
    clients.saturating_add(beside.min(clients))
}
/// What a pass over the sessions hands to each of them: of the broadcasts that are pending, the first up to so many bytes,
/// and one in any case.
pub const FANOUT_PASS_BYTES_MAX: usize = 64 * 1024;
/// Broadcasts that are pending at once are put together, up to so many bytes, once for all sessions.
pub const TOGETHER_BYTES_MAX: usize = 16 * 1024;
/// The iovecs of one write (the kernel's IOV_MAX is 1024; more than this brings nothing).
pub const WRITE_SLICES_MAX: usize = 64;
/// How often it is measured whether an alert fires or clears.
pub const ALERT_TICK: std::time::Duration = std::time::Duration::from_secs(1);
/// The time over which alerts on rates and percentiles look at most: `alerts.fire_after`, within these bounds.
pub const ALERT_WINDOW: (std::time::Duration, std::time::Duration) =
    (std::time::Duration::from_secs(1), std::time::Duration::from_secs(60));
/// The parts of it, each no shorter than a tick: a rate is taken over the latest, a percentile over as many of the latest as
/// it needs.
pub const ALERT_SLOTS: u32 = 6;
/// The fewest measurements that an alert on a percentile believes.
pub const ALERT_MEASUREMENTS_MIN: u64 = 20;
/// A turn of the runtime that comes this late is worth a warning.
pub const SCHEDULER_DELAY_WARN: std::time::Duration = std::time::Duration::from_millis(100);
/// The sessions that a fan-out serves before it yields: a quarter of a millisecond of writes to idle sockets, which is
/// what somebody else's turn may have to wait for, and still many times what the yield costs.
pub const FANOUT_SLICE_SESSIONS: usize = 32;

const _: () =
    assert!(STORE_PATIENCE.as_millis() < STORE_LAZY_DELAY.as_millis(), "what is stored comes before what is not");
const _: () = assert!(USER_AGENT_BYTES_MAX <= PATTERN_BYTES_MAX, "what is shown of a session can be asked for");
const _: () = assert!(TOKEN_BYTES_MAX < HTTP_HEAD_BYTES_MAX, "a token must fit into a handshake");
const _: () = assert!(TOKEN_BYTES_MAX < UNAUTHENTICATED_MESSAGE_BYTES_MAX, "a token must fit into an auth message");
const _: () = assert!(UNAUTHENTICATED_MESSAGE_BYTES_MAX < UNAUTHENTICATED_BYTES_MAX, "the first message must fit");
const _: () = assert!(ADDRESS_RATE_CELLS.is_power_of_two(), "a cell is some bits of a hash");
const _: () = assert!(USER_ID_BYTES_MAX <= u8::MAX as usize, "keys hold the length of a user id in one byte");
const _: () = assert!(TOPIC_BYTES_MAX <= u8::MAX as usize, "keys hold the length of a topic in one byte");
const _: () = assert!(
    WRITER_QUEUE_BYTES_MAX < STORE_CHUNK_BYTES_MAX * u16::MAX as usize,
    "the largest record that the queue takes has chunks that two bytes can number"
);
const _: () = assert!(WRITER_QUEUE_BYTES_MAX < u32::MAX as usize, "a semaphore hands out so many at once");
const _: () = assert!(NOTIFICATION_ID_BYTES_MAX <= u8::MAX as usize, "rows hold the length of an id in one byte");
const _: () = assert!(COLLAPSE_KEY_BYTES_MAX <= u8::MAX as usize, "rows hold the length of a collapse key in one byte");
const _: () = assert!(PAGE_ROWS_DEFAULT <= PAGE_ROWS_MAX);
const _: () = assert!(OPS_BODY_VALUES_MAX <= OPS_VALUES_MAX, "any body that may be read has its turn");
const _: () = assert!(OPS_CALLS_MAX < OPS_CONNECTIONS_MAX, "probes need room beside calls");
const _: () = assert!(BATCH_STOP_GRACE.as_millis() < GRPC_STOP_GRACE.as_millis(), "its answers must still get out");
const _: () = assert!(ALERT_TICK.as_millis() <= ALERT_WINDOW.0.as_millis(), "no window is missed between two looks");
const _: () = assert!(WAIT_TIMEOUT_DEFAULT.as_millis() <= WAIT_TIMEOUT_MAX.as_millis());

/// What happens to one connection of a device too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceOverflow {
    /// The oldest makes room: it is closed with 1008.
    #[default]
    Newest,
    /// It is refused with 1013.
    Refuse,
}

impl DeviceOverflow {
    /// The value of the key.
    pub const fn as_str(self) -> &'static str {
        match self {
            DeviceOverflow::Newest => "newest",
            DeviceOverflow::Refuse => "refuse",
        }
    }
}

/// The section `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections to the public listener at once; further ones get 503.
    pub connections: Count,
    /// Sessions of one user at once; further ones are closed with 1013.
    pub connections_per_user: Count,
    /// Connections of one address at once, of an IPv6 network of 64 bits; further ones get 503.
    pub connections_per_address: Count,
    /// Sessions of one device at once; with one more, see `device_overflow`.
    pub connections_per_device: Count,
    /// What happens to one more.
    pub device_overflow: DeviceOverflow,
    /// Connections that are accepted a second, and at once; further ones wait in the kernel's queue.
    pub accepts_per_second: Count,
    /// Handshakes a second, and at once; further ones get 503.
    pub handshakes_per_second: Count,
    /// The same of one address.
    pub address_handshakes_per_second: Count,
    /// How long a handshake's head may take to arrive.
    pub handshake_timeout: Span,
    /// The largest head of a handshake; a larger one gets 431.
    pub handshake_bytes: ByteSize,
    /// The largest message from a client; a larger one is closed with 1009.
    pub message_bytes: ByteSize,
    /// Messages and pings of a session a second, and at once; beyond that it is warned, then closed with 4429.
    pub messages_per_second: Count,
    /// The same of what it sends, in bytes; none at 0.
    pub bytes_per_second: ByteSize,
    /// The largest notification, encoded for the client.
    pub notification_bytes: ByteSize,
    /// The most bytes that wait for one session's socket; more that is not stored closes it with 4409.
    pub outbox_bytes: ByteSize,
    /// How long pending bytes may make no progress before the session is closed with 4409.
    pub write_timeout: Span,
    /// Bad messages a minute before a session is closed with 4400.
    pub bad_messages: Count,
    /// New tokens a minute on a session; further ones are not looked at.
    pub reauths_per_minute: Count,
    /// Devices of one user that become known within an hour; further ones are refused.
    pub new_devices_per_hour: Count,
    /// Topics that one session is in; further ones are refused.
    pub topics_per_session: Count,
    /// Sessions that are in one topic; further ones are refused.
    pub topic_sessions: Count,
    /// Topics that a session may join and leave at once; then [`MEMBERSHIP_CHANGES_PER_SECOND`].
    pub membership_changes: Count,
    /// Lists of users that a session may ask for at once; then two a second.
    pub user_lists: Count,
    /// TLS handshakes under way on the listeners of one kind at once; with one more the oldest is dropped.
    pub tls_handshakes: Count,
    /// The process's resident memory, from which on no connection is let in: a size, or a share of what it may have.
    pub memory: Level,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Count(100_000),
            connections_per_user: Count(100),
            // Clients behind one proxy, or one operator's NAT, have one address.
            connections_per_address: Count(0),
            connections_per_device: Count(0),
            device_overflow: DeviceOverflow::Newest,
            // What a machine takes is not known; handshakes take turns, so that they harm nobody.
            accepts_per_second: Count(0),
            handshakes_per_second: Count(0),
            address_handshakes_per_second: Count(0),
            handshake_timeout: Span::secs(10),
            handshake_bytes: ByteSize::kib(8),
            message_bytes: ByteSize::kib(64),
            messages_per_second: Count(10_000),
            bytes_per_second: ByteSize::mib(16),
            notification_bytes: ByteSize::kib(256),
            outbox_bytes: ByteSize::mib(1),
            write_timeout: Span::secs(10),
            bad_messages: Count(20),
            reauths_per_minute: Count(10),
            new_devices_per_hour: Count(100),
            topics_per_session: Count(100),
            topic_sessions: Count(0),
            membership_changes: Count(1024),
            user_lists: Count(20),
            tls_handshakes: Count(4096),
            memory: Level::Share(80),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_clients_that_descriptors_are_asked_for() {
        for clients in [0, 1, 500, 1024, 1025, 15_360, 15_361, 16_000, 20_000, 30_720, 30_721, 100_000, 1 << 40] {
            let needed = descriptors_for_clients(clients);
            assert!(room_for_clients(needed) >= clients, "{clients}: {needed}");
            // And hardly more than that.
            assert!(needed < 3 || room_for_clients(needed - 2) < clients, "{clients}: {needed}");
        }
        assert_eq!((descriptors_for_clients(100_000), room_for_clients(102_048)), (102_048, 100_000));
        assert_eq!((room_for_clients(20_000), room_for_clients(1000), room_for_clients(0)), (18_750, 500, 0));
        assert_eq!(descriptors_for_clients(u64::MAX), u64::MAX);
    }
}
