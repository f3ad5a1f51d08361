//! `Publish`, `Subscribe`, `Unsubscribe`, `ListTopics`.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Api, Caller,
    convert::Checks,
    error::ApiError,
    pages::{self, Filter},
    proto,
    scope::Scope,
    send::outcome,
};
use crate::{
    hub::{Changes, Handle, Hub, MailboxError, TopicRow},
    limits,
    types::{Offset, SessionId, Topic, UserId},
};

impl Api {
    /// `Publish`.
    pub async fn publish(
        &self,
        caller: &Caller,
        request: proto::PublishRequest,
    ) -> Result<proto::PublishResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let mut checks = Checks::default();
        let topic = checks.field("topic", Topic::parse(&request.topic));
        let own_id = request.notification.as_ref().is_some_and(|notification| !notification.id.is_empty());
        let notification = checks.notification(request.notification, hub.quotas(), hub.clock().unix_millis(), false);
        let (topic, notification) = checks.finish((topic, notification))?;
        let id = notification.id.clone();
        let sent = hub.publish(&topic, notification, own_id).await?;
        Ok(proto::PublishResponse {
            id: id.as_str().to_owned(),
            offset: sent.offset.map_or(0, Offset::get),
            outcome: outcome(sent.outcome).into(),
            sessions: sent.sessions,
            duplicate: sent.duplicate,
        })
    }

    /// `Subscribe`.
    pub async fn subscribe(
        &self,
        caller: &Caller,
        request: &proto::SubscribeRequest,
    ) -> Result<proto::SubscribeResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let named = Named::parse(&request.topic, &request.user_ids, &request.session_ids)?;
        let changes = named.change(hub, true).await?;
        let Changes { sessions, changed, refused, devices } = changes;
        Ok(proto::SubscribeResponse { sessions, changed, refused, devices })
    }

    /// `Unsubscribe`.
    pub async fn unsubscribe(
        &self,
        caller: &Caller,
        request: &proto::UnsubscribeRequest,
    ) -> Result<proto::UnsubscribeResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let named = Named::parse(&request.topic, &request.user_ids, &request.session_ids)?;
        let Changes { changed, devices, .. } = named.change(hub, false).await?;
        Ok(proto::UnsubscribeResponse { changed, devices })
    }

    /// `ListTopics`.
    pub async fn list_topics(
        &self,
        caller: &Caller,
        request: &proto::ListTopicsRequest,
    ) -> Result<proto::ListTopicsResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        let mut checks = Checks::default();
        let topic = checks.optional("topic", &request.topic, Topic::parse);
        // A beginning is a name itself, if it is not empty.
        let prefix = checks.optional("prefix", &request.prefix, Topic::parse);
        let filter = Filter::new("topics", &[Some(&request.topic), Some(&request.prefix)]);
        let after = checks.page_token(&request.page_token, filter, |after| Topic::parse(after).ok());
        let (topic, prefix, after) = checks.finish((topic, prefix, after))?;
        let prefix = prefix.as_ref().map_or("", Topic::as_str);
        let rows = pages::rows(request.page_size);
        let mut page = match topic {
            Some(topic) if after.is_some() || !topic.as_str().starts_with(prefix) => Vec::new(),
            Some(topic) => hub.topic(&topic).await.map_err(MailboxError::Store)?.into_iter().collect(),
            // One more than asked for tells whether there is a next page.
            None => hub.topic_page(prefix, after.as_ref(), rows + 1).await.map_err(MailboxError::Store)?,
        };
        let more = page.len() > rows;
        page.truncate(rows);
        let last = page.last().filter(|_| more);
        Ok(proto::ListTopicsResponse {
            next_page_token: last.map(|last| filter.token(last.name.as_str())).unwrap_or_default(),
            topics: page.iter().map(row).collect(),
        })
    }
}

fn row(row: &TopicRow) -> proto::Topic {
    let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
    proto::Topic {
        topic: row.name.to_string(),
        sessions: count(row.sessions),
        users: count(row.users),
        durable: row.durable,
        records: row.records,
        bytes: row.bytes,
    }
}

/// A topic, and whom a call about it names.
struct Named {
    topic: Topic,
    users: Vec<UserId>,
    sessions: Vec<SessionId>,
}

impl Named {
    fn parse(topic: &str, users: &[String], sessions: &[String]) -> Result<Self, ApiError> {
        let mut checks = Checks::default();
        let topic = checks.field("topic", Topic::parse(topic));
        let (named, max) = (users.len() + sessions.len(), limits::SUBSCRIBERS_MAX);
        checks.check("user_ids", named > 0, || "or session_ids must name somebody".to_owned());
        checks.check("user_ids", named <= max, || {
            format!("and session_ids have {named} entries, and at most {max} are allowed")
        });
        let users = users.iter().map(|user| UserId::parse(user)).collect::<Result<Vec<_>, _>>();
        let users = checks.field("user_ids", users);
        let sessions = sessions.iter().map(|session| SessionId::parse(session)).collect::<Result<Vec<_>, _>>();
        let sessions = checks.field("session_ids", sessions);
        let (topic, users, sessions) = checks.finish((topic, users, sessions))?;
        Ok(Self { topic, users, sessions })
    }

    /// Has all of them in the topic, or out of it.
    async fn change(&self, hub: &Hub, wanted: bool) -> Result<Changes, ApiError> {
        let Named { topic, users, sessions } = self;
        let sessions = sessions.iter().filter_map(|session| hub.session(*session));
        if hub.is_durable(topic) {
            let changes = hub.change_members(topic, users, &sessions.collect::<Vec<_>>(), wanted).await;
            return Ok(changes.map_err(MailboxError::Store)?);
        }
        let of_users = users.iter().flat_map(|user| hub.user_sessions(user));
        let each: BTreeMap<SessionId, Arc<Handle>> =
            of_users.chain(sessions).map(|handle| (handle.id, handle)).collect();
        let sessions: Vec<_> = each.into_values().collect();
        let changed =
            if wanted { hub.subscribe(topic, &sessions).await } else { hub.unsubscribe(topic, &sessions).await };
        Ok(changed)
    }
}
