//! The operator's commands: their place in the command line, and how each is run.

use clap::{Args, Subcommand};
use clap_complete::Shell;

use super::{
    backup, doctor,
    drain::{self, Drain, Undrain},
    events::{self, Events},
    failure::{Outcome, failed},
    init, listen,
    live::top::{self, Top},
    log,
    mailbox::{self, Devices, Forget, Pending, Purge},
    man, output,
    reload::{self, Reload},
    revoke,
    send::{self, Broadcast, Close, Send},
    sessions::{self, Sessions},
    status::{self, Health, Status},
    store,
    stress::{self, Stress},
    token,
    topics::{self, Publish, Topics},
    users::{self, Users},
};

/// What an operator asks of a running gateway, and what he needs around it.
#[derive(Subcommand, Debug)]
pub enum Operator {
    /// Write a first configuration with a fresh signing key and admin token
    ///
    /// The file gets mode 0600 and nothing is ever overwritten. At /etc/pushgate/pushgate.toml (the default) it is for
    /// a service; anywhere else socket and data lie beside the file. The admin token goes to standard output, once; the
    /// file holds its hash.
    #[command(after_help = init::EXAMPLES)]
    Init(init::Init),
    /// Send a notification to a user
    ///
    /// Each device of the user gets it, at once or when it comes back.
    #[command(after_help = "Examples:
  pushgate send alice '{\"hello\":\"world\"}'
  pushgate send alice '\"dinner is ready\"' --type message --from bob --ttl 1h
  pushgate send alice --data-file order.json --id order-17
  pushgate send alice '{\"score\":\"2:1\"}' --collapse-key match-7
  pushgate send alice '\"are you there?\"' --wait confirmed --wait-timeout 30s
  date | pushgate send alice --binary-file -")]
    Send(Send),
    /// Send a notification to every session that is connected now, or to every known device
    #[command(after_help = "Examples:
  pushgate broadcast '{\"maintenance\":\"22:00\"}' --type system_message
  pushgate broadcast '{\"version\":7}' --durable --id release-7 --exclude-user bob
  pushgate broadcast '\"please update\"' --user-agent 'MyApp/1.*' --device phone --device tablet
  pushgate broadcast '\"standup\"' --claim team=ops --connected-before 2026-01-31T09:00:00Z
  pushgate broadcast --data-file news.json --json")]
    Broadcast(Box<Broadcast>),
    /// Publish a notification to the sessions that are in a topic
    #[command(after_help = "Examples:
  pushgate publish news '{\"headline\":\"it snows\"}'
  pushgate publish room.7 '\"closing in five minutes\"' --type system_message
  pushgate publish room.7 --binary-file picture.png --json")]
    Publish(Publish),
    /// Close sessions of a user
    #[command(after_help = "Examples:
  pushgate close alice
  pushgate close alice --device phone --code 1008 --reason 'account closed'
  pushgate close alice --session 0197f1c2-8a4e-7d31-9b1c-2f6f0b7e5a11")]
    Close(Close),
    /// Make tokens of clients void before they run out
    ///
    /// Sessions that live by them are closed with 4401, and nobody comes in by them any more, also after a restart. It is
    /// remembered until the tokens have run out by themselves.
    #[command(after_help = "Examples:
  pushgate revoke --jti 5f0c1b52 --expires-at 2026-01-31T12:00:00Z
  pushgate revoke --user alice --expires-in 1d
  pushgate revoke --user alice --issued-before 2026-01-31T09:00:00Z --expires-in 1d --json")]
    Revoke(revoke::Revoke),
    /// List what waits for a user
    #[command(after_help = "Examples:
  pushgate pending alice
  pushgate pending alice --device phone
  pushgate pending alice --json | jq -r '.notifications[].id'")]
    Pending(Pending),
    /// Clear what waits for a user
    ///
    /// Without --force it only says how much that is.
    #[command(after_help = "Examples:
  pushgate purge alice
  pushgate purge alice --force
  pushgate purge alice --device phone --force --json")]
    Purge(Purge),
    /// List the devices of a user that are known, connected or not
    #[command(after_help = "Examples:
  pushgate devices alice
  pushgate devices alice --json | jq '.devices[] | select(.gap)'")]
    Devices(Devices),
    /// Forget a device of a user, or the user with all that is stored for him
    ///
    /// Its sessions are closed. A device that comes back is new, and told that it lacks something.
    #[command(after_help = "Examples:
  pushgate forget alice --device old-phone
  pushgate forget alice --device ''
  pushgate forget alice --force --json")]
    Forget(Forget),
    /// Show how the gateway does
    #[command(after_help = "Examples:
  pushgate status
  pushgate status --watch
  pushgate status --json | jq .connections.now")]
    Status(Status),
    /// List the sessions that are connected
    #[command(after_help = "Examples:
  pushgate sessions
  pushgate sessions --user alice --device phone
  pushgate sessions --address 10.0.0.0/8
  pushgate sessions --json | jq -r '.sessions[].userId'")]
    Sessions(Sessions),
    /// Show the sessions that weigh most, live
    ///
    /// On a terminal a screen that is drawn anew with every listing; else a table each time. Rates are of the time between two
    /// listings.
    #[command(after_help = top::EXAMPLES)]
    Top(Top),
    /// List the users who are online
    #[command(after_help = "Examples:
  pushgate users
  pushgate users --json | jq -r '.users[] | select(.sessions > 1).userId'")]
    Users(Users),
    /// List the topics that somebody is in
    ///
    /// Who is in one: pushgate sessions --topic TOPIC
    #[command(after_help = "Examples:
  pushgate topics
  pushgate topics --prefix room.
  pushgate topics news --json | jq '.topics[].sessions'")]
    Topics(Topics),
    /// Follow what happens, a line an event
    #[command(after_help = "Examples:
  pushgate events
  pushgate events --type session_opened --type session_closed --user alice
  pushgate events --type alert
  pushgate events --json | jq -c .sessionClosed
  pushgate events --snapshot --type session_opened --type session_closed
  pushgate events --message-type order.status --group orders")]
    Events(Events),
    /// Ask whether the gateway serves; exit code 0 where it does, else 69
    #[command(after_help = "Examples:
  pushgate health
  pushgate health --grpc 127.0.0.1:7001 --service pushgate.v1.Gateway")]
    Health(Health),
    /// Set what the gateway logs, while it runs
    ///
    /// It stays so until it is set again or the gateway ends; what the configuration says is not changed. What was in force
    /// before is printed, so that it can be set again.
    #[command(after_help = "Examples:
  pushgate log info,pushgate::store=debug
  pushgate log warn --json | jq -r .previous")]
    Log(log::Log),
    /// Connect as a client and print what arrives, a line a message
    ///
    /// Comes back where the close code says so. Messages go to standard output, all else to standard error.
    #[command(after_help = listen::EXAMPLES)]
    Listen(listen::Listen),
    /// Put a load on a gateway, and say what became of it
    ///
    /// Many light sessions connect, are sent to over gRPC, and count what comes: lost, twice, out of order, how late.
    /// It is for a gateway that may be loaded, not for one in use.
    #[command(after_help = stress::EXAMPLES)]
    Stress(Box<Stress>),
    /// Make tokens: for a user, or for a caller of the admin API
    #[command(subcommand, arg_required_else_help = true)]
    Token(token::Token),
    /// Check everything that a gateway needs, and send a message the whole way
    ///
    /// A line a check: ok, warn or FAIL, and what to do. Exit code 1 where one fails. Run it as the user the gateway
    /// runs as. The message goes to the user `pushgate-doctor`, whose device `doctor` stays known. A
    /// warning is no failure: where no gateway answers, the message is not tried, and the exit code is 0.
    #[command(after_help = "Examples:
  pushgate doctor
  pushgate doctor --config ./pushgate.toml --json")]
    Doctor(doctor::Doctor),
    /// Have the running gateway read its configuration again
    ///
    /// What can be in force without a restart is from then on; what cannot is named. A configuration with anything wrong
    /// changes nothing. It is read from where `serve` read it: its file, its environment, its flags.
    #[command(after_help = "Examples:
  pushgate reload
  pushgate reload --config ./pushgate.toml --json")]
    Reload(Reload),
    /// Copy the running gateway's store to a folder
    ///
    /// The copy is the store as it is at one moment after the call began; sending goes on meanwhile. It takes as long as it
    /// takes: --timeout does not end it. To go back to it: stop the gateway, set store.path to it or move it there, start.
    #[command(after_help = "Examples:
  pushgate backup /var/lib/pushgate/backup-1
  pushgate backup \"$PWD/backup-$(date +%F)\" --json")]
    Backup(backup::Backup),
    /// Take the gateway out of service in order, and leave it running
    ///
    /// It is not ready at once, serves on for shutdown.lb_delay, then lets nobody in any more; every session is told when to
    /// come back, and closed. This command shows how far it is, and ends when it is done; interrupting it does not end the
    /// drain. To restart a gateway it is not needed: SIGTERM does the same.
    #[command(after_help = "Examples:
  pushgate drain
  pushgate drain --over 60s
  pushgate drain --over 10m --deadline 15m --json | jq -r .left")]
    Drain(Drain),
    /// Take the gateway back into service, wherever its drain is
    #[command(after_help = "Examples:
  pushgate undrain")]
    Undrain(Undrain),
    /// Look into a store on disk, write it out, read it in, make it small, while no gateway has it open
    #[command(subcommand, arg_required_else_help = true)]
    Store(store::Store),
    /// Print a script that completes pushgate's command line
    #[command(after_help = "Examples:
  pushgate completions bash > /usr/share/bash-completion/completions/pushgate
  pushgate completions zsh > \"${fpath[1]}/_pushgate\"
  pushgate completions fish > ~/.config/fish/completions/pushgate.fish")]
    Completions(Completions),
    /// Write the manual pages, one for each command, to a folder that is there
    #[command(hide = true)]
    Man(man::Man),
}

/// `pushgate completions`.
#[derive(Args, Debug)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// Runs one of them. `command` is the whole command line, for completions.
pub fn run(operator: Operator, command: clap::Command) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed("cannot start"))?;
    let outcome = runtime.block_on(async {
        match operator {
            Operator::Init(args) => init::init(&args),
            Operator::Send(args) => send::send(args).await,
            Operator::Broadcast(args) => send::broadcast(*args).await,
            Operator::Publish(args) => topics::publish(args).await,
            Operator::Close(args) => send::close(args).await,
            Operator::Revoke(args) => revoke::revoke(args).await,
            Operator::Pending(args) => mailbox::pending(args).await,
            Operator::Purge(args) => mailbox::purge(args).await,
            Operator::Devices(args) => mailbox::devices(args).await,
            Operator::Forget(args) => mailbox::forget(args).await,
            Operator::Status(args) => status::status(args).await,
            Operator::Sessions(args) => sessions::sessions(args).await,
            Operator::Top(args) => top::top(args).await,
            Operator::Users(args) => users::users(args).await,
            Operator::Topics(args) => topics::topics(args).await,
            Operator::Events(args) => events::events(args).await,
            Operator::Health(args) => status::health(args).await,
            Operator::Log(args) => log::log(args).await,
            Operator::Listen(args) => listen::listen(args).await,
            Operator::Stress(args) => stress::stress(*args).await,
            Operator::Token(args) => token::token(args),
            Operator::Doctor(args) => doctor::doctor(args).await,
            Operator::Reload(args) => reload::reload(args).await,
            Operator::Backup(args) => backup::backup(args).await,
            Operator::Drain(args) => drain::drain(args).await,
            Operator::Undrain(args) => drain::undrain(args).await,
            Operator::Store(args) => store::store(args),
            Operator::Completions(args) => completions(&args, command),
            Operator::Man(args) => man::man(&args, command),
        }
    });
    // The resolution of a name is not waited for.
    runtime.shutdown_background();
    outcome
}

fn completions(args: &Completions, mut command: clap::Command) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "pushgate", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}

/// Runs what has no end of its own until it is interrupted or nobody reads what it prints, which is a good end.
pub async fn until_stopped(endless: impl Future<Output = Outcome>) -> Outcome {
    tokio::select! {
        biased;
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted.map_err(failed("cannot wait for an interrupt"))?),
        () = output::closed() => Ok(()),
        outcome = endless => outcome,
    }
}
