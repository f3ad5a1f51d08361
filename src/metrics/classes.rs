//! Messages and bytes by what they are, in a few classes that are known beforehand.

use super::spread::SpreadCounters;

/// What a message between the gateway and a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// A stored notification, whether for a user, of a durable broadcast or of a durable topic; from a client: one that is to
    /// be stored.
    Durable,
    /// A notification for a user or a session that is not stored.
    Transient,
    /// A broadcast that is not stored.
    Broadcast,
    /// What is published to a topic and is not stored.
    Publish,
    /// A client's message for the services, and their replies.
    Request,
    /// The protocol's own messages: authentication, acks, subscriptions, presence, errors; from a client also what is none of
    /// the protocol's.
    System,
    /// Control frames: ping, pong, close (RFC 6455 section 5.5).
    Control,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 7] = [
        Class::Durable,
        Class::Transient,
        Class::Broadcast,
        Class::Publish,
        Class::Request,
        Class::System,
        Class::Control,
    ];

    /// The name that operators see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Durable => "durable",
            Class::Transient => "transient",
            Class::Broadcast => "broadcast",
            Class::Publish => "publish",
            Class::Request => "request",
            Class::System => "system",
            Class::Control => "control",
        }
    }
}

/// How many classes there are.
pub const CLASSES: usize = Class::ALL.len();

/// Messages and bytes of each class, in the order of [`Class::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerClass(pub [(u32, u32); CLASSES]);

impl PerClass {
    /// So many more of a class.
    pub fn add(&mut self, class: Class, messages: u32, bytes: u32) {
        let (has, so_many) = &mut self.0[class as usize];
        (*has, *so_many) = (has.saturating_add(messages), so_many.saturating_add(bytes));
    }
}

/// Messages and bytes in one direction.
#[derive(Debug, Default)]
pub struct Traffic(SpreadCounters<{ 2 * CLASSES }>);

impl Traffic {
    /// So many more of a class.
    pub fn add(&self, class: Class, messages: u64, bytes: u64) {
        self.0.add_both((class as usize, messages), (CLASSES + class as usize, bytes));
    }

    /// What went in one go.
    pub fn add_all(&self, PerClass(all): &PerClass) {
        for (class, (messages, bytes)) in all.iter().enumerate().filter(|(_, one)| **one != (0, 0)) {
            self.0.add_both((class, u64::from(*messages)), (CLASSES + class, u64::from(*bytes)));
        }
    }

    /// Messages of a class; of control frames, frames.
    pub fn messages_of(&self, class: Class) -> u64 {
        self.0.get(class as usize)
    }

    /// Bytes of a class.
    pub fn bytes_of(&self, class: Class) -> u64 {
        self.0.get(CLASSES + class as usize)
    }

    /// WebSocket messages, control frames left out.
    pub fn messages(&self) -> u64 {
        Class::ALL.iter().filter(|class| **class != Class::Control).map(|class| self.messages_of(*class)).sum()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        Class::ALL.iter().map(|class| self.bytes_of(*class)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_add_up_and_control_frames_are_no_messages() {
        let traffic = Traffic::default();
        let mut some = PerClass::default();
        for (n, class) in (1..).zip(Class::ALL) {
            assert_eq!(class as usize, n as usize - 1);
            some.add(class, n, 100 * n);
        }
        traffic.add_all(&some);
        traffic.add(Class::Control, 1, 6);
        assert_eq!((traffic.messages(), traffic.bytes()), (21, 2806));
        assert_eq!((traffic.messages_of(Class::Control), traffic.bytes_of(Class::Durable)), (8, 100));
    }
}
