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
    hub::{Handle, Hub, TopicRow},
    limits,
    types::{SessionId, Topic, UserId},
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
        let notification = checks.notification(request.notification, hub.quotas(), hub.clock().unix_millis(), false);
        let (topic, notification) = checks.finish((topic, notification))?;
        let id = notification.id.clone();
        let sent = hub.publish(&topic, notification).await?;
        Ok(proto::PublishResponse {
            id: id.as_str().to_owned(),
            offset: 0,
            outcome: outcome(sent.outcome).into(),
            sessions: sent.sessions,
        })
    }

    /// `Subscribe`.
    pub async fn subscribe(
        &self,
        caller: &Caller,
        request: &proto::SubscribeRequest,
    ) -> Result<proto::SubscribeResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let (topic, sessions) = sessions(hub, &request.topic, &request.user_ids, &request.session_ids)?;
        let changes = hub.subscribe(&topic, &sessions).await;
        Ok(proto::SubscribeResponse { sessions: changes.sessions, changed: changes.changed, refused: changes.refused })
    }

    /// `Unsubscribe`.
    pub async fn unsubscribe(
        &self,
        caller: &Caller,
        request: &proto::UnsubscribeRequest,
    ) -> Result<proto::UnsubscribeResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let (topic, sessions) = sessions(hub, &request.topic, &request.user_ids, &request.session_ids)?;
        Ok(proto::UnsubscribeResponse { changed: hub.unsubscribe(&topic, &sessions).await.changed })
    }

    /// `ListTopics`.
    pub fn list_topics(
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
            Some(topic) => hub.topic(&topic).into_iter().collect(),
            // One more than asked for tells whether there is a next page.
            None => hub.topic_page(prefix, after.as_ref(), rows + 1),
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
    proto::Topic { topic: row.name.to_string(), sessions: count(row.sessions), users: count(row.users) }
}

/// The topic, and the sessions that users and ids stand for, each once.
fn sessions(
    hub: &Hub,
    topic: &str,
    users: &[String],
    sessions: &[String],
) -> Result<(Topic, Vec<Arc<Handle>>), ApiError> {
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
    let of_users = users.iter().flat_map(|user| hub.user_sessions(user));
    let all = of_users.chain(sessions.into_iter().filter_map(|session| hub.session(session)));
    let each: BTreeMap<SessionId, Arc<Handle>> = all.map(|handle| (handle.id, handle)).collect();
    Ok((topic, each.into_values().collect()))
}
